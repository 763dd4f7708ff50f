"""What can go wrong, each said in one line: what, where and what to do.

The command line prints the message and exits with status 2; from Python these are ordinary exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SAID = "TRILEMMA_SAID"  # names the file that the main process of several leaves once it has told of an error


class TrilemmaError(Exception):
    """Anything a user can mend. Its text is one line."""


class ConfigError(TrilemmaError):
    """A setting, name or recipe that does not hold."""


class DataError(TrilemmaError):
    """Data that cannot be found, read or used."""


class RunError(TrilemmaError):
    """A run folder or checkpoint that cannot be read or written."""


class NonFiniteError(TrilemmaError):
    """A loss or weight became NaN or infinite."""


class ExtractorError(TrilemmaError):
    """A feature extractor whose weights are missing or do not fit."""


def nearest(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for an unknown name, with the nearest valid one and the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ConfigError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a training, once its state is saved. The text is one line: where it is and how to go on."""


class Terminated(SystemExit):
    """SIGTERM during a training, once its state is saved: the process ends with status 143. The text is one line."""

    def __init__(self, words: str) -> None:
        super().__init__(143)
        self.words = words

    def __str__(self) -> str:
        return self.words
