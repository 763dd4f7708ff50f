"""Fill the results tables of the README from the run folders under docs/results.

    python docs/tables.py            # print what would be written
    python docs/tables.py --write    # write README.md

Between ``<!-- results:NAME -->`` and ``<!-- /results:NAME -->`` goes the table of the runs in docs/results/NAME, where
there are any.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from trilemma.comparison import markdown_table, read_rows

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
SPOT = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- /results:\2 -->)", re.DOTALL)


def filled(text: str) -> str:
    """The README's text with every results table made anew."""

    def table(match: re.Match[str]) -> str:
        runs = sorted({path.parent for path in (DOCS / "results" / match[2]).glob("*/eval*.json")})
        if not runs:
            return match[0]
        rows = sorted(read_rows(runs), key=lambda row: row.scores.nfe or 0, reverse=True)
        return f"{match[1]}\n{markdown_table(rows).strip()}\n\n{match[3]}"

    return SPOT.sub(table, text)


def main() -> None:
    """Print or write."""
    text = filled(README.read_text(encoding="utf-8"))
    if "--write" in sys.argv[1:]:
        README.write_text(text, encoding="utf-8")
    else:
        print("\n".join(match[0] for match in SPOT.finditer(text)))


if __name__ == "__main__":
    main()
