"""Lists the decisions of docs/adr in docs/README.md, by number.

``python docs/list_decisions.py`` writes the list; ``tests/unit/docs/test_links.py`` fails when a page is in no list.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
LIST = re.compile(r"(<!-- decisions -->\n).*?(<!-- /decisions -->)", re.DOTALL)


def decisions() -> str:
    """A line for each, with its title as the link."""
    lines = []
    for path in sorted((DOCS / "adr").glob("*.md")):
        title = path.read_text().splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}](adr/{path.name})\n")
    return "".join(lines)


if __name__ == "__main__":
    page = DOCS / "README.md"
    page.write_text(LIST.sub(lambda found: found[1] + decisions() + found[2], page.read_text()))
