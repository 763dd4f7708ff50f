"""What the README and the pages under docs tell a reader to type, open or call is there."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import trilemma
from trilemma import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:src|docs|tests)/[\w./-]+|[\w-]+\.(?:md|toml|txt)|Makefile|LICENSE)`")
TYPED_BY_READERS = {"mine.toml"}


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of one language."""
    return (body for found, body in FENCE.findall(read(page)) if found == language)


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every line in a shell block, comments left out."""
    lines = [(name(page), line) for page in PAGES for body in blocks(page, "sh") for line in body.splitlines()]
    return [(page, words) for page, line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = commands()
OURS = [(page, words[1:]) for page, words in COMMANDS if words[0].split("/")[-1] == "trilemma"]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Commands end up in this list in place of being run; recipes that a page spells out lie in the current folder."""
    seen: list[Any] = []
    stand_in = SimpleNamespace(**{f"run_{command.replace('-', '_')}": seen.append for command in cli.COMMANDS})
    monkeypatch.setitem(sys.modules, "trilemma.commands", stand_in)
    monkeypatch.setattr(trilemma, "commands", stand_in, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")  # as in a process that --processes has started: it starts no others
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        for body in blocks(page, "toml"):
            title = body.splitlines()[0].removeprefix("# ")
            assert title in TYPED_BY_READERS, f"{name(page)}: begin the TOML with its file's name"
            (tmp_path / title).write_text(body, encoding="utf-8")
    return seen


@pytest.mark.parametrize(("page", "words"), OURS, ids=[" ".join(words)[:60] for _, words in OURS])
def test_a_command_parses(page: str, words: list[str], parsed: list[Any]) -> None:
    try:
        cli.main(words)
    except SystemExit as stop:
        pytest.fail(f"{page}: trilemma {shlex.join(words)} does not parse (status {stop.code})")
    assert len(parsed) == 1


def test_every_command_is_shown() -> None:
    assert {words[0] for _, words in OURS} == set(cli.COMMANDS)
    table = read(ROOT / "README.md").split("## Commands", 1)[1].split("\n## ", 1)[0]
    assert list(dict.fromkeys(re.findall(r"^\| `([\w-]+)", table, re.MULTILINE))) == list(cli.COMMANDS)


def test_a_wrong_command_is_noticed(parsed: list[Any]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["sample", "runs/digits", "--count", "3"])
    assert parsed == []


def test_make_targets_exist() -> None:
    wanted = {word for _, words in COMMANDS if words[0] == "make" for word in words[1:]}
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert wanted and wanted <= set(targets)


def test_nothing_else_is_typed() -> None:
    """A line that is neither trilemma nor make is one of the three that install it."""
    other = {" ".join(words[:3]) for _, words in COMMANDS if words[0] != "make" and not words[0].endswith("trilemma")}
    assert other == {"python3 -m venv", ".venv/bin/pip install -c"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_files_exist(page: Path) -> None:
    links = [link for link in LINK.findall(read(page)) if "://" not in link]
    for link in links:
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name(page)} links to {link}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", read(file), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{name(page)} links to {link}, which has no such heading"
    for file_name in set(FILE.findall(read(page))) - TYPED_BY_READERS:
        assert (ROOT / file_name).exists(), f"{name(page)} names {file_name}, which is not there"


def test_the_python_example_fits_the_library() -> None:
    """Every name exists, and every call's arguments fit the signature; nothing is run."""
    owners: dict[str, Any] = {"trilemma": trilemma, "gen": trilemma.load.__self__}  # type: ignore[attr-defined]
    calls = 0
    for body in blocks(ROOT / "README.md", "python"):
        for node in ast.walk(ast.parse(body)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            assert isinstance(node.func.value, ast.Name)
            function = getattr(owners[node.func.value.id], node.func.attr)
            itself = [None] if node.func.value.id == "gen" else []
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(function).bind(*itself, *([None] * len(node.args)), **keywords)
            calls += 1
    assert calls >= 6


def test_names_in_the_text_exist() -> None:
    named = set(re.findall(r"`trilemma\.(\w+)", read(ROOT / "README.md")))
    assert named and named <= set(trilemma.__all__)


def test_packaging_agrees() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = read(ROOT / "README.md")
    assert project["requires-python"] == ">=3.11" and "Python 3.11 or newer" in text
    assert project["license"] == "Apache-2.0" and "Apache 2.0" in text
    assert project["readme"] == "README.md"
