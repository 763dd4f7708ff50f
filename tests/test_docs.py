"""The documentation agrees with the code: tables made from it are current, numbers typed by hand are its numbers."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trilemma.config import load_recipe, recipe_names
from trilemma.measure.digits_cnn import read_metadata
from trilemma.methods import method_class, method_names

DOCS = Path(__file__).resolve().parents[1] / "docs"


def _script(name: str) -> ModuleType:
    """docs/NAME.py as a module; it is no part of the package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


options, tables = _script("options"), _script("tables")


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def rows(page: str, section: str) -> list[list[str]]:
    """The cells of the first table below a heading, its heading row first."""
    lines = text(page).split(f"# {section}\n", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


@pytest.mark.parametrize("page", [page.relative_to(DOCS).as_posix() for page in options.pages()])
def test_tables_are_current(page: str) -> None:
    assert text(page) == options.filled(text(page)), f"docs/{page} is behind: run python docs/options.py --write"


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_tables_of_results_are_current(page: Path) -> None:
    written = page.read_text(encoding="utf-8")
    assert tables.SPOT.search(written)
    assert written == tables.filled(written), f"{page.name} is behind: run python docs/tables.py --write"


def test_every_table_is_on_some_page() -> None:
    written = {name for page in options.pages() for name in re.findall(r"<!-- made:([\w-]+) -->", page.read_text())}
    pages = {f"options-{name}" for name in method_names() if (DOCS / "methods" / f"{name}.md").is_file()}
    assert written == {"recipes", "training"} | pages


@pytest.mark.parametrize("method", method_names())
def test_every_setting_has_its_comment(method: str) -> None:
    def check(cls: type) -> None:
        comments = options.field_comments(cls)
        for field in dataclasses.fields(cls):
            value = None if field.default_factory is dataclasses.MISSING else field.default_factory()
            if dataclasses.is_dataclass(value):
                check(type(value))
            else:
                assert comments.get(field.name), f"{cls.__name__}.{field.name} has no comment behind it"

    check(method_class(method).Options)


def test_a_comment_is_read_whole() -> None:
    comments = options.field_comments(method_class("ddgan").Options)
    assert comments["num_timesteps"] == "T; 1 is a one-shot GAN"
    assert options.toml((0.5, 0.9)) == "`[0.5, 0.9]`"
    assert options.toml(True) == "`true`" and options.toml("vp") == '`"vp"`' and options.toml(None) == "—"


def test_settings_beyond_the_paper_exist() -> None:
    """The list is written by hand: each item is a setting, and each setting whose comment says "ours" is an item."""
    cls = method_class("ddgan").Options
    section = text("methods/ddgan.md").split("## Beyond the paper\n", 1)[1].split("\n## ", 1)[0]
    listed = re.findall(r"^- `(\w+)`", section, re.MULTILINE)
    comments = options.field_comments(cls)
    ours = [field.name for field in dataclasses.fields(cls) if "ours" in comments.get(field.name, "")]
    assert sorted(listed) == sorted(ours)


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


@pytest.mark.parametrize(
    ("recipe", "title"),
    [
        ("ddgan-cifar10", "CIFAR-10"),
        ("ddgan-lsun-church256", "LSUN Church Outdoor 256"),
        ("ddgan-celebahq256", "CelebA-HQ 256"),
    ],
)
def test_published_epochs_become_images(recipe: str, title: str) -> None:
    row = next(row for row in rows("recipes.md", "Denoising diffusion GAN") if row[0] == title)
    _, images, epochs, shown, gpus, batch = row
    each, processes = map(int, gpus.split(" x "))
    training = load_recipe(recipe).training
    assert number(images) * number(epochs) == number(shown) == training.images
    assert each * processes == int(batch) == training.batch_size


@pytest.mark.parametrize(
    ("recipe", "title"),
    [
        ("ddpm-cifar10", "CIFAR-10"),
        ("ddpm-lsun-church256", "LSUN Church 256"),
        ("ddpm-celebahq256", "CelebA-HQ 256"),
    ],
)
def test_published_steps_become_images(recipe: str, title: str) -> None:
    _, steps, batch, shown, rate, dropout = next(row for row in rows("recipes.md", "DDPM") if row[0] == title)
    loaded = load_recipe(recipe)
    assert number(steps) * number(batch) == number(shown) == loaded.training.images
    assert number(batch) == loaded.training.batch_size
    assert float(rate) == loaded.options["learning_rate"]
    assert float(dropout) == loaded.options["unet"].get("dropout", 0.0)


PUBLISHED = ("ddgan-cifar10", "ddgan-lsun-church256", "ddgan-celebahq256")
SETTINGS = {
    "T": ("num_timesteps",),
    "learning rate of G": ("lr_g",),
    "learning rate of D": ("lr_d",),
    "both end at, by a cosine": ("final_lr",),
    "Adam's betas": ("adam_betas",),
    "R1 gamma": ("r1_gamma",),
    "R1 every": ("lazy_reg",),
    "channels of G": ("unet.channels",),
    "in multiples, level by level": ("unet.channel_mult",),
    "blocks a level": ("unet.blocks",),
    "latent, width and layers of its mapping": ("latent.nz", "latent.embedding", "latent.layers"),
    "discriminator": ("discriminator.kind", "discriminator.channels"),
}


@pytest.mark.parametrize("column", range(3), ids=PUBLISHED)
def test_published_settings_are_the_recipes(column: int) -> None:
    recipe = load_recipe(PUBLISHED[column])
    lines = text("recipes.md").split("| setting | CIFAR-10 |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    table = {
        cells[0]: cells[1 + column] for line in lines if (cells := [c.strip() for c in line.strip("|").split("|")])
    }
    assert float(table.pop("decay of the averaged weights")) == recipe.training.ema_decay
    assert set(table) == set(SETTINGS)
    for label, keys in SETTINGS.items():
        values: list[object] = []
        for key in keys:
            value: object = recipe.options
            for part in key.split("."):
                assert isinstance(value, dict)
                value = value[part]
            values += value if isinstance(value, list) else [value]
        shown = [cell if cell.isalpha() else float(cell) for cell in table[label].removesuffix(" steps").split(", ")]
        assert shown == values, label


def test_the_judges_accuracies_are_its_own() -> None:
    metadata, page = read_metadata(), " ".join(text("evaluation.md").split())
    assert f"for {metadata['mnist_test_accuracy']} of MNIST's test set" in page
    assert f"for {metadata['digits_test_accuracy']} of the digits held out" in page


def test_every_recipe_is_listed() -> None:
    listed = [row[0].strip("`") for row in rows("recipes.md", "What comes with the package")[2:]]
    assert listed == recipe_names()


def test_the_estimate_of_large_runs_is_what_was_counted() -> None:
    found = json.loads((DOCS / "results" / "cluster.json").read_text(encoding="utf-8"))
    table = [
        [
            f"`{name}`",
            f"{made['counted']['parameters']:,}",
            f"{made['counted']['flops'] / 1e12:.3f}",
            f"{made['estimated']['memory_gib']:.1f}",
            f"{made['estimated']['traffic_mb_a_step']:.0f}",
            f"{made['estimated']['images_per_second']:.0f}",
            f"{made['estimated']['hours']:.0f}",
        ]
        for name, made in found["recipes"].items()
    ]
    assert rows("cluster.md", "What large runs would take")[2:] == table
    for name, made in found["recipes"].items():
        training = load_recipe(name).training
        assert (training.batch_size, training.images) == (made["estimated"]["batch_size"], made["estimated"]["images"])
