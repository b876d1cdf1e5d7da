"""Links between the pages lead somewhere, and every page can be found from the README."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """Every relative link: as it is written, the file, and the heading that it names, if any."""
    for link in _LINK.findall(_CODE.sub("", page.read_text())):
        if "://" not in link:
            path, _, heading = link.partition("#")
            yield link, (page.parent / path).resolve() if path else page, heading


def anchors(page: Path) -> set[str]:
    """What can be linked to on a page: marks, and headings as GitHub names them, of one name the later by number."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    found = set(re.findall(r'<a id="([\w-]+)">', text))
    for title in re.findall(r"^#+ (.+)$", text, re.M):
        name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    dead = [
        link
        for link, file, heading in links(page)
        if not file.exists() or (heading and file.suffix == ".md" and heading not in anchors(file))
    ]
    assert dead == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    waiting, seen = [ROOT / "README.md"], set[Path]()
    while waiting:
        page = waiting.pop()
        if page not in seen:
            seen.add(page)
            waiting += [file for _, file, _ in links(page) if file.suffix == ".md" and file.is_file()]
    assert [page.relative_to(ROOT) for page in PAGES if page not in seen] == [], (
        "link it, or list a decision by `make docs`"
    )
