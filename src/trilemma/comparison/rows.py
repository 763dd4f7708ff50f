"""Reads run folders: one row for every evaluation file, with the run's log and pictures.

``RUN/eval.json`` is the default sampler, ``RUN/eval-TAG.json`` another one over the same weights; their pictures lie in
``RUN/eval/TAG/``. A folder of run folders (a race) stands for all of them.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from trilemma.config import shown
from trilemma.errors import ConfigError, RunError
from trilemma.files import parse_json, read_text
from trilemma.rows import Kind, LogPoint, Row, Scores, differences

_SMALLEST, _LARGEST = 1e-100, 1e100  # of a number that is one: sums, ratios and logarithms of such numbers are, too
_LONGEST = 200  # characters of a name


def read_rows(runs: Sequence[Path]) -> list[Row]:
    """All rows of these run or race folders, in the order given, each folder once. Raises RunError."""
    folders: dict[Path, Path] = {}
    for run in runs:
        for folder in _expand(Path(run)):
            folders.setdefault(folder.resolve(), folder)
    if not folders:
        raise RunError("nothing to compare: give at least one run folder, for example runs/ddgan-mnist")
    return [row for folder in folders.values() for row in _read_run(folder)]


def refuse_unequal(rows: Sequence[Row]) -> None:
    """Refuse rows whose quality scores were not made under one protocol.

    Raises:
        ConfigError: naming the fields that differ, their values and whose they are.
    """
    unequal = [difference for difference in differences(rows) if difference.affects == "quality"]
    if unequal:
        told = "; ".join(f"{one.name} is {' and '.join(one.told())}" for one in unequal)
        raise ConfigError(
            f"these rows were not scored alike: {' '.join(told.split())}; evaluate them under one protocol, "
            "or compare them all the same with --force, which marks what differs"
        )


def _expand(path: Path) -> list[Path]:
    """The run folders that ``path`` stands for."""
    if not path.exists():
        raise RunError(f"{path} does not exist{_nearest_sibling(path)}")
    if (path / "config.json").is_file():
        return [path]
    inner = [folder for folder in sorted(path.iterdir()) if (folder / "config.json").is_file()] if path.is_dir() else []
    if not inner:
        what = "no config.json" if path.is_dir() else "it is a file"
        remedy = "give a folder that trilemma train has written, or one that holds such folders"
        remedy += "; images are scored first, by trilemma evaluate"
        raise RunError(f"{path} is not a run folder: {what}; {remedy}")
    return inner


def _nearest_sibling(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f": there is no folder {parent} either"
    siblings = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.4)
    if close:
        return f": did you mean {parent / close[0]}?"
    return f": {parent} holds {', '.join(siblings[:8])}" if siblings else f": {parent} holds no run folders"


def _read_run(run: Path) -> list[Row]:
    config = _read_object(run / "config.json", "train again or restore the file")
    evaluations = [path for path in [run / "eval.json"] if path.is_file()]
    evaluations += sorted((path for path in run.glob("eval-*.json") if path.is_file()), key=_natural)
    command = _command(run, config)
    if not evaluations:
        raise RunError(f"{run} has not been evaluated: {command}")
    log = _read_log(run / "log.jsonl")
    return [_read_row(run, path, config, log, command) for path in evaluations]


def _read_row(run: Path, path: Path, config: Mapping[str, Any], log: tuple[LogPoint, ...], command: str) -> Row:
    remedy = f"evaluate again: {command}"
    content = _read_object(path, remedy)
    parts: dict[str, Mapping[str, Any]] = {}
    for key in ("row", "scores", "protocol"):
        part = content.get(key)
        if not isinstance(part, dict):
            raise RunError(f"{path} has no object named {key!r}; {remedy}")
        parts[key] = part
    about, protocol = parts["row"], parts["protocol"]
    for key in (key.name for key in fields(Scores)):
        if not _is_number(parts["scores"].get(key)):
            raise RunError(f"{path}: score {key!r} is {shown(parts['scores'][key])}, not a number; {remedy}")
    tag = path.stem.removeprefix("eval").removeprefix("-") or "default"
    pictures = run / "eval" / tag
    method = _name(about.get("method") or config.get("method") or run.name)
    parameters = _number(protocol, "parameters")
    return Row(
        run=run,
        tag=tag,
        title=_name(about.get("title") or config.get("title") or run.name),
        method=method,
        family=_name(about.get("family") or ""),
        paper=_name(about.get("paper") or ""),
        sampler=_name(about.get("sampler") or tag),
        kind=_kind(config, parts["scores"]),
        scores=Scores(**{key.name: _number(parts["scores"], key.name) for key in fields(Scores)}),
        parameters=None if parameters is None else int(parameters),
        training_images=_number(protocol, "training_images"),
        training_seconds=_number(protocol, "training_seconds"),
        protocol=protocol,
        config=config,
        log=log,
        samples=_existing(pictures / "samples.png"),
        trajectory=_existing(pictures / "trajectory.png"),
        neighbours=_existing(pictures / "neighbours.png"),
        worst=_existing(pictures / "worst.png"),
        intervals=_intervals(content.get("intervals"), path, remedy),
    )


def _command(run: Path, config: Mapping[str, Any]) -> str:
    """What to type to get the scores."""
    images, data = config.get("images"), config.get("data")
    if config.get("kind") != "images" or not isinstance(images, dict) or not isinstance(data, dict):
        return f"trilemma evaluate {shlex.quote(str(run))}"
    source, reference = str(images.get("path")), str(data.get("path") or data.get("name"))
    return f"trilemma evaluate {shlex.quote(source)} --data {shlex.quote(reference)} --out {shlex.quote(str(run))}"


def _intervals(found: object, path: Path, remedy: str) -> dict[str, tuple[float, float]]:
    """Score to (low, high); an interval that could not be computed is left out. Files without intervals have none."""
    if not isinstance(found, dict):
        if found is not None:
            raise RunError(f"{path}: intervals is {shown(found)}, not an object; {remedy}")
        return {}
    result = {}
    for name, ends in found.items():
        if not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))):
            raise RunError(f"{path}: the interval of {shown(name)} is {shown(ends)}, not two numbers; {remedy}")
        if None not in ends:
            result[str(name)] = (float(ends[0]), float(ends[1]))
    return result


def _read_object(path: Path, remedy: str) -> dict[str, Any]:
    try:
        content = _parse(read_text(path))
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read ({_one_line(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} does not hold a JSON object; {remedy}")
    return content


def _read_log(path: Path) -> tuple[LogPoint, ...]:
    """The log's lines; a run without a log has no curve. A half-written last line (a run still going) is left out."""
    if not path.is_file():
        return ()
    try:
        lines = read_text(path, errors="replace").splitlines()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({_one_line(error)}); remove it") from error
    points = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = _parse(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(f"{path} line {number} is not JSON ({_one_line(error)}); remove that line") from error
        if not isinstance(entry, dict):
            raise RunError(f"{path} line {number} is not a JSON object; remove that line")
        losses, watch, warnings = entry.get("losses"), entry.get("watch"), entry.get("warnings")
        points.append(
            LogPoint(
                step=int(_number(entry, "step") or 0),
                images=_number(entry, "images"),
                seconds=_number(entry, "seconds"),
                losses={_name(k): float(v) for k, v in losses.items() if v is not None and _is_number(v)}
                if isinstance(losses, dict)
                else {},
                fid=_number(entry, "fid"),
                coverage=_number(watch, "coverage") if isinstance(watch, dict) else None,
                warnings=tuple(map(_name, warnings)) if isinstance(warnings, list) else (),
            )
        )
    return tuple(points)


def _kind(config: Mapping[str, Any], scores: Mapping[str, Any]) -> Kind:
    data = config.get("data")
    spec = data.get("spec") if isinstance(data, dict) else None
    stated = spec.get("kind") if isinstance(spec, dict) else None
    if stated in ("images", "points"):
        return "points" if stated == "points" else "images"
    return "points" if "modes" in scores or "share_within_4_sigma" in scores else "images"


def _is_number(value: object) -> bool:
    """Whether it is none, or a number with which one can count."""
    if value is None or value == 0:
        return not isinstance(value, bool)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return _SMALLEST <= abs(value) <= _LARGEST


def _number(content: Mapping[str, Any], key: str) -> float | None:
    value = content.get(key)
    return float(value) if value is not None and _is_number(value) else None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts ddim9 before ddim10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem) if part]


def _parse(text: str) -> Any:
    """A JSON value; halves of characters, which no file can hold, become question marks. Raises ValueError."""
    value = parse_json(text)
    if "\\ud" not in text.lower():
        return value
    return parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8"))


def _name(value: object) -> str:
    """A name or sentence as it may be shown: on one line, without control characters, and not endless."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value)[:_LONGEST])
    return " ".join(text.split())


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return " ".join(str(error).split())
