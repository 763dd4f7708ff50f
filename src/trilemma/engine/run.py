"""A run is a folder, readable without this library: JSON, PNG and safetensors.

config.json  model.safetensors  log.jsonl  samples/  checkpoints/  eval.json
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from trilemma.config import build, require, require_all
from trilemma.engine.bounds import bounded, check_settings
from trilemma.engine.checkpoint import write_tensors
from trilemma.errors import RunError, nearest
from trilemma.files import (
    cannot_write,
    clear_temporaries,
    finite,
    parse_json,
    read_json,
    read_text,
    write_atomically,
    write_json,
)
from trilemma.methods import method_class
from trilemma.methods.base import Method
from trilemma.types import DataSpec

IMAGES = "images"  # the kind of a folder with scores of images that no run made


class Run:
    """Paths and files of one run folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.config_path = self.folder / "config.json"
        self.model_path = self.folder / "model.safetensors"
        self.log_path = self.folder / "log.jsonl"
        self.checkpoint_folder = self.folder / "checkpoints"
        self.sample_folder = self.folder / "samples"

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """An existing run.

        Raises:
            RunError: there is no such folder, or it is not a run.
        """
        run = cls(folder)
        if not run.folder.is_dir():
            siblings = [p.name for p in run.folder.parent.iterdir()] if run.folder.parent.is_dir() else []
            close = difflib.get_close_matches(run.folder.name, siblings, n=1)
            hint = f"did you mean {run.folder.parent / close[0]}?" if close else "give the folder of a trained run"
            raise RunError(f"no run {run.folder}: {hint}")
        if not run.config_path.is_file():
            raise RunError(f"{run.folder} is not a run: it has no config.json; give the folder that train wrote")
        return run

    def config(self) -> dict[str, Any]:
        """config.json."""
        config: dict[str, Any] = read_json(self.config_path)
        if isinstance(config, dict) and config.get("kind") == IMAGES:
            raise RunError(f"{self.folder} holds scores of images that no run made, and no weights: give a trained run")
        wanted = {"method": str, "options": dict, "data": dict}
        wrong = [
            key for key, kind in wanted.items() if not isinstance(config, dict) or type(config.get(key)) is not kind
        ]
        inside = {"name": str, "spec": dict}
        wrong += [
            f"data.{key}" for key, kind in inside.items() if not wrong and type(config["data"].get(key)) is not kind
        ]
        if wrong:
            raise RunError(f"{self.config_path} lacks {', '.join(wrong)}: it was not written by train or convert")
        optional = (("training", dict, config), ("path", str, config["data"]), ("digest", str, config["data"]))
        odd = [key for key, kind, table in optional if not isinstance(table.get(key), kind | None)]
        if odd:
            raise RunError(f"{self.config_path} holds no usable {', '.join(odd)}: restore it or train again")
        return config

    def spec(self) -> DataSpec:
        """The shape of one sample."""
        spec = build(DataSpec, self.config()["data"]["spec"], str(self.config_path))
        require_all(
            (min(spec.shape) >= 1, f"{self.config_path}: a sample has at least 1 number, not {spec.shape}"),
            (spec.classes >= 0, f"{self.config_path}: classes must not be negative, not {spec.classes}"),
        )
        return spec

    def class_number(self, word: str) -> int:
        """The number of the class called ``word`` in the data that the run was trained on, or else that number itself.

        Raises:
            ConfigError: no such name, and no number.
            RunError: a config.json with other things than names.
        """
        names = self.config()["data"].get("class_names", [])  # earlier versions did not keep them
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RunError(f"{self.config_path}: data.class_names is no list of names: restore it, or leave it out")
        if word in names:
            return names.index(word)
        if word.isdecimal() and len(word) < 10:
            return int(word)
        require(bool(names), f"--class {word}: this run does not know the names of classes: give a number")
        raise nearest("class", word, names)

    def build_method(self) -> Method:
        """The method this run trained, with fresh weights; networks out of all proportion to its own are refused."""
        config, where = self.config(), str(self.config_path)
        self._require_weights()
        kind = method_class(config["method"])
        check_settings([config["options"], config["data"]["spec"]], where)
        with bounded(where, self.model_path):
            return kind(build(kind.Options, config["options"], where), self.spec())

    def save_weights(self, networks: Mapping[str, nn.Module], step: int | None = None) -> None:
        """model.safetensors: the averaged weights of the sampling networks, and after how many steps."""
        tensors: dict[str, Tensor] = {
            f"{name}.{key}": value.detach().cpu().contiguous()
            for name, network in networks.items()
            for key, value in network.state_dict().items()
        }
        write_tensors(self.model_path, tensors, None if step is None else {"step": str(step)})

    def finished_step(self) -> int | None:
        """The step that model.safetensors was written after; None without one, or where the file does not say."""
        try:
            with safe_open(self.model_path, framework="pt") as file:
                return int((file.metadata() or {})["step"])
        except (SafetensorError, OSError, KeyError, ValueError):
            return None

    def load_weights(self, method: Method) -> None:
        """Put model.safetensors into the method's sampling networks.

        Raises:
            RunError: no weights, damaged weights or weights of another network.
        """
        self._require_weights()
        try:
            tensors = load_file(self.model_path)
            for name, network in method.sampling_networks().items():
                prefix = f"{name}."
                own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                _check_kinds(own, network.state_dict(), name)
                network.load_state_dict(own)
        except (SafetensorError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(f"{self.model_path} does not fit its config.json or is damaged: {reason}") from error

    def _require_weights(self) -> None:
        if not self.model_path.is_file():
            raise RunError(f"{self.folder} has no model.safetensors yet: finish its training with --resume")

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl."""
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(dict(record)), allow_nan=False) + "\n")
        except OSError as error:
            raise cannot_write(self.log_path, error) from error

    def read_log(self) -> list[dict[str, Any]]:
        """The records of log.jsonl, without the lines that cannot be read."""
        return self._read_log()[0]

    def _read_log(self) -> tuple[list[dict[str, Any]], int]:
        """The records, and how many lines are damaged; a last one cut short by a kill is not counted.

        Raises:
            RunError: the file is there and cannot be read.
        """
        if not self.log_path.is_file():
            return [], 0
        try:
            text = read_text(self.log_path, errors="replace")
        except OSError as error:
            raise RunError(f"cannot read {self.log_path}: {error.strerror or error}") from error
        *whole, last = text.split("\n")  # what follows the last line's end
        lines = [_record(line) for line in whole if line.strip()]
        records = [record for record in (*lines, _record(last)) if record is not None]
        return records, sum(record is None for record in lines)

    def trim_log(self, step: int) -> int:
        """Forget what was logged after ``step``, which a resumed run writes again; how many lines were damaged."""
        records, damaged = self._read_log()
        text = "".join(json.dumps(record) + "\n" for record in records if record["step"] <= step)
        write_atomically(self.log_path, lambda p: p.write_text(text, encoding="utf-8"))
        return damaged

    def clear_temporaries(self) -> None:
        """Delete half-written files that a killed training left under their temporary names."""
        for folder in (self.folder, self.checkpoint_folder, self.sample_folder):
            clear_temporaries(folder)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """config.json, written first: a folder with one is a run."""
        write_json(self.config_path, dict(config))


def _record(line: str) -> dict[str, Any] | None:
    """One line of the log; None where it is damaged, or its position no number."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    counts = [record.get(key, 0) for key in ("images", "seconds", "flops")]
    return record if all(isinstance(count, int | float) for count in counts) else None


def _check_kinds(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> None:
    """Refuse whole or complex numbers where weights are meant; half precision is no other kind. Raises TypeError."""
    for key, value in found.items():
        if key in wanted and value.is_floating_point() != wanted[key].is_floating_point():
            raise TypeError(f"{name}.{key} holds {value.dtype}, not {wanted[key].dtype}")
