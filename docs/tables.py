"""Fill the tables of results in the README and under docs from the run folders and measurements that are committed.

    python docs/tables.py            # print what would be written
    python docs/tables.py --write    # write the pages

Between ``<!-- results:NAME -->`` and ``<!-- /results:NAME -->`` goes the table of the runs in docs/results/NAME, and
between ``<!-- trials:NAME -->`` and ``<!-- /trials:NAME -->`` how the quick scores of those runs went in training. In
place of these words, ``speed`` puts the speeds in benchmarks/results/NAME.json, ``kinds`` where their time goes,
``int8`` what benchmarks/results/int8-NAME.json says of eight bits, and ``versus`` what versus-NAME.json says of an
earlier version.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from trilemma.comparison import markdown_table, read_rows

DOCS = Path(__file__).resolve().parent
PAGES = (DOCS.parent / "README.md", DOCS / "recipes.md", DOCS / "speed.md")
SPEEDS = DOCS.parent / "benchmarks" / "results"
SPOT = re.compile(r"(<!-- (results|trials|speed|kinds|int8|versus):([\w-]+) -->\n).*?(<!-- /\2:\3 -->)", re.DOTALL)


def results_table(folder: Path) -> str:
    """The scores of the runs in a folder, most function evaluations first; nothing if none is evaluated."""
    runs = sorted({path.parent for path in folder.glob("*/eval*.json")})
    rows = sorted(read_rows(runs), key=lambda row: row.scores.nfe or 0, reverse=True) if runs else []
    return markdown_table(rows).strip() if rows else ""


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value)
    return found


def trials_table(folder: Path) -> str:
    """Per run the settings in which the runs of one method in a folder differ, and the quick FID at each snapshot."""
    configs = {path.parent: json.loads(path.read_text()) for path in sorted(folder.glob("*/config.json"))}
    # Budgets and snapshots show in the numbers themselves.
    settings = {
        run: _flat(config["options"] | {"batch_size": config["training"]["batch_size"]})
        for run, config in configs.items()
    }
    names = sorted({name for flat in settings.values() for name in flat})
    methods = {config["method"] for config in configs.values()}
    alike = [[flat for run, flat in settings.items() if configs[run]["method"] == method] for method in methods]
    varied = [name for name in names if any(len({flat.get(name) for flat in trials}) > 1 for trials in alike)]
    lines = [["trial", *(f"`{name}`" for name in varied), "images, seconds: quick FID"], ["---"] * (len(varied) + 2)]
    for run, flat in settings.items():
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        scores = [f"{r['images']:,}, {r['seconds']:.0f} s: {r['fid']:.1f}" for r in log if "fid" in r]
        lines.append([run.name, *(flat.get(name, "") for name in varied), "; ".join(scores)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _drawn(lines: list[list[str]]) -> str:
    rules = ["---"] + ["---:"] * (len(lines[0]) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rules, *lines[1:]])


def speed_table(file: Path) -> str:
    """What was measured, and over the reference implementation where there is one."""
    result = json.loads(file.read_text(encoding="utf-8"))
    lines = [["network", "what", "images at a time", "images/s", "share of the roofline", "over the reference"]]
    for row in result["rows"]:
        against = result["reference"].get(row["case"], {})
        last = row["kind"] != "sample" or row["batch"] == max(
            other["batch"] for other in result["rows"] if (other["case"], other["kind"]) == (row["case"], "sample")
        )
        ratio = f"{against[row['kind']]:.2f}" if row["kind"] in against and last else ""
        speed, share = f"{row['images_per_second']:.3g}", f"{row['share_of_roofline']:.2f}"
        lines.append([f"`{row['case']}`", row["kind"], str(row["batch"]), speed, share, ratio])
    return _drawn(lines)


def kinds_table(file: Path) -> str:
    """Shares of a training step's time by kind of operation."""
    found = {
        row["case"]: row["time_by_kind"]
        for row in json.loads(file.read_text(encoding="utf-8"))["rows"]
        if "time_by_kind" in row
    }
    kinds = dict.fromkeys(kind for shares in found.values() for kind in shares)
    lines = [["network", *kinds]]
    lines += [[f"`{case}`", *(f"{shares.get(kind, 0):.2f}" for kind in kinds)] for case, shares in found.items()]
    return _drawn(lines)


def int8_table(file: Path) -> str:
    """Scores in float32 and in eight bits, and images a second by runtime."""
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    runtimes = dict.fromkeys(name for row in rows for name in row["images_per_second"])
    lines = [["method", "FID, float32", "FID, int8", "recall, float32", "recall, int8", *runtimes]]
    for row in rows:
        scores = [row["scores"][name][kind] for name in ("fid", "recall") for kind in ("float32", "int8")]
        speeds = [f"{row['images_per_second'].get(name, 0):,.0f}" for name in runtimes]
        lines.append([row["title"], *(f"{score:.3g}" for score in scores), *speeds])
    return _drawn(lines)


def versus_table(file: Path) -> str:
    """Training steps before and after, and where their time went."""
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    kinds = dict.fromkeys(kind for row in rows for kind in row["after"]["time_by_kind"])
    lines = [["network", "ms a step", "times as fast", "in the rounds", *(f"ms: {kind}" for kind in kinds)]]
    for row in rows:
        before, after = row["before"], row["after"]
        lowest, highest = row["of_the_rounds"]
        spent = [
            f"{1e3 * before['seconds'] * before['time_by_kind'].get(kind, 0):.1f} → "
            f"{1e3 * after['seconds'] * after['time_by_kind'].get(kind, 0):.1f}"
            for kind in kinds
        ]
        times = f"{1e3 * before['seconds']:.1f} → {1e3 * after['seconds']:.1f}"
        ratio, seen = f"{row['times_as_fast']:.2f}", f"{lowest:.2f} to {highest:.2f}"
        lines.append([f"`{row['case']}`", times, ratio, seen, *spent])
    return _drawn(lines)


def filled(text: str) -> str:
    """A page's text with every table made anew."""
    measured = {"speed": speed_table, "kinds": kinds_table, "int8": int8_table, "versus": versus_table}

    def table(match: re.Match[str]) -> str:
        if match[2] in measured:
            name = f"{match[2]}-{match[3]}" if match[2] in ("int8", "versus") else match[3]
            made = measured[match[2]](SPEEDS / f"{name}.json")
        else:
            make = results_table if match[2] == "results" else trials_table
            made = make(DOCS / "results" / match[3])
        return f"{match[1]}\n{made}\n\n{match[4]}" if made else match[0]

    return SPOT.sub(table, text)


def main() -> None:
    """Print or write."""
    for page in PAGES:
        text = filled(page.read_text(encoding="utf-8"))
        if "--write" in sys.argv[1:]:
            page.write_text(text, encoding="utf-8")
        else:
            print("\n".join(match[0] for match in SPOT.finditer(text)))


if __name__ == "__main__":
    main()
