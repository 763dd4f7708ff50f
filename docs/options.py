"""The tables of settings and recipes in the documentation, made from the dataclasses and TOML files themselves.

    python docs/options.py            prints the tables
    python docs/options.py --write    puts them into the pages beside this file

A table stands between ``<!-- made:NAME -->`` and ``<!-- /made:NAME -->``; what is between them is replaced. The comment
behind a dataclass's field is its meaning here, on the command line and in the code. ``tests/test_docs.py`` fails when a
page is behind.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
import sys
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trilemma.config import Training, describe, load_recipe, recipe_names
from trilemma.data import catalogue
from trilemma.methods import method_class, method_names

DOCS = Path(__file__).resolve().parent
MARKED = re.compile(r"<!-- made:(?P<name>[\w-]+) -->\n.*?<!-- /made:(?P=name) -->", re.DOTALL)


def field_comments(cls: type[Any]) -> dict[str, str]:
    """The comment behind each field of a dataclass, its bases' included, by the field's name."""
    comments: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            comments |= field_comments(base)
    name = ""
    first_on_line = True
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(cls)).readline):
        if token.type == tokenize.NAME and first_on_line:
            name = token.string
        elif token.type == tokenize.COMMENT and not first_on_line:
            comments[name] = token.string.lstrip("# ")
        if token.type in (tokenize.NEWLINE, tokenize.NL):
            first_on_line = True
        elif token.type not in (tokenize.INDENT, tokenize.DEDENT):
            first_on_line = False
    return comments


def default_of(field: dataclasses.Field[Any]) -> str:
    """A field's default as one writes it in TOML."""
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return toml(value)


def toml(value: Any) -> str:
    """A plain value in TOML's notation; None, which TOML cannot say, is a dash."""
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, tuple):
        return f"`[{', '.join(toml(item).strip('`') for item in value)}]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def words(hint: Any) -> str:
    """What a setting may be."""
    text = describe(hint).replace("'", '"').removesuffix(" or nothing")
    plural = {"a list of a whole number": "whole numbers", "a list of a number": "numbers"}
    return plural.get(text, text)


def table(cls: type[Any]) -> list[str]:
    """One Markdown table: the settings of a dataclass, those of nested ones left out."""
    hints, comments = typing.get_type_hints(cls), field_comments(cls)
    lines = ["| setting | default | value | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            continue
        cells = (f"`{field.name}`", default_of(field), words(hint), comments[field.name])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def options_tables(method: str) -> str:
    """All settings of a method, a table for each section of its recipe."""
    cls = method_class(method).Options
    return "\n\n".join(["`[options]`:", "\n".join(table(cls)), *_sections(cls, "options")])


def _sections(cls: type[Any], path: str) -> Iterator[str]:
    """The tables of the settings dataclasses inside ``cls``, each with its heading."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner, name = typing.cast(type[Any], hint), f"{path}.{field.name}"
            yield f"`[{name}]`: {(inspect.getdoc(hint) or '').split(chr(10))[0]}"
            yield "\n".join(table(inner))
            yield from _sections(inner, name)


def recipes_table() -> str:
    """The packaged recipes: their data, batch, budget and one line about them."""
    lines = ["| recipe | data | batch | default budget | about |", "|---|---|---:|---:|---|"]
    for name in recipe_names():
        recipe = load_recipe(name)
        training = recipe.training
        budget = f"{training.images:,} images" if training.images is not None else f"{training.minutes:g} minutes"
        data = recipe.data.name or "any images"
        if recipe.data.name and recipe.data.name not in catalogue():
            data += " (your folder)"
        lines.append(f"| `{name}` | {data} | {training.batch_size} | {budget} | {recipe.about} |")
    return "\n".join(lines)


def made(name: str) -> str:
    """The Markdown of one table."""
    if name == "recipes":
        return recipes_table()
    if name == "training":
        return "\n".join(table(Training))
    return options_tables(name.removeprefix("options-"))


def names() -> list[str]:
    """The names of all tables."""
    return ["recipes", "training", *(f"options-{method}" for method in method_names())]


def filled(text: str) -> str:
    """A page with all its tables made anew."""
    return MARKED.sub(lambda m: f"<!-- made:{m['name']} -->\n\n{made(m['name'])}\n\n<!-- /made:{m['name']} -->", text)


def pages() -> Iterator[Path]:
    """The pages that hold a table."""
    return (page for page in sorted(DOCS.rglob("*.md")) if MARKED.search(page.read_text(encoding="utf-8")))


def main(arguments: list[str]) -> None:
    """Print the tables, or write them into the pages."""
    if arguments not in ([], ["--write"]):
        sys.exit("usage: python docs/options.py [--write]")
    if not arguments:
        print("\n\n".join(f"## {name}\n\n{made(name)}" for name in names()))
        return
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
