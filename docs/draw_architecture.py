"""Draws docs/architecture.md from the code: the rooms, what imports what, and what each room says of itself.

``python docs/draw_architecture.py`` writes the page; with ``--check`` it exits 1 when the page is stale.

A room is a package of two levels (``bus.stream``, ``agents.core``), a whole top-level package where it is small, or a
module that is a front door; its paragraph is its docstring, or the ``README.md`` of a folder of TypeScript.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

import grimp
from written_page import keep

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BUILDINGS = ("fedbus", "agents", "artifacts", "data", "bus")
WHOLE = ("fedbus", "artifacts", "data")
"""Packages that are one room."""
DOORS = ("bus.client",)
"""Modules that are rooms of their own."""
SOURCES = ROOT / "browser_client" / "src"
_IMPORT = re.compile(r"""from ["'](\.[^"']+)["']""")

HEAD = """# Architecture

Drawn from the code by `make docs`; a test fails when it is stale. An arrow means "imports"; arrows that follow from
others are left out. `make lint` holds the layers: their rules stand in `pyproject.toml` under `tool.importlinter`, and
circles are refused.
"""


def rooms() -> list[str]:
    """The names of the Python rooms, in the order in which the page names them."""
    names = []
    for building in BUILDINGS:
        if building in WHOLE:
            names.append(building)
            continue
        inside = [f"{building}.{path.parent.name}" for path in (ROOT / building).glob("*/__init__.py")]
        names += sorted([*inside, *(door for door in DOORS if door.startswith(f"{building}."))])
    return names


def arrows(names: list[str]) -> set[tuple[str, str]]:
    """Which room imports which; each pair once, without those that follow from others."""
    graph = grimp.build_graph(*BUILDINGS)
    found: set[tuple[str, str]] = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = (_room_of(module, names), _room_of(imported, names))
            if "" not in pair and pair[0] != pair[1]:
                found.add(pair)
    return reduced(found)


def reduced(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The pairs that no path of other pairs makes needless."""
    after: dict[str, set[str]] = {}
    for start, end in pairs:
        after.setdefault(start, set()).add(end)

    def reaches(start: str, end: str) -> bool:
        waiting, seen = [one for one in after.get(start, ()) if one != end], set()
        while waiting:
            at = waiting.pop()
            if at == end:
                return True
            if at not in seen:
                seen.add(at)
                waiting += after.get(at, ())
        return False

    return {pair for pair in pairs if not reaches(*pair)}


def _room_of(module: str, names: list[str]) -> str:
    """The room that a module lies in; nothing for the few that lie at the door of a package."""
    parts = module.split(".")
    room = parts[0] if parts[0] in WHOLE else ".".join(parts[:2])
    return room if room in names else ""


def page_rooms() -> tuple[list[str], set[tuple[str, str]]]:
    """The folders of the page's sources, and which imports which."""
    names = sorted(path.name for path in SOURCES.iterdir() if path.is_dir())
    found = set()
    for name in names:
        for file in (SOURCES / name).rglob("*.ts"):
            for target in _IMPORT.findall(file.read_text()):
                room = (file.parent / target).resolve().relative_to(SOURCES).parts[0]
                if room != name and room in names:
                    found.add((name, room))
    return names, reduced(found)


def drawing(names: list[str], pairs: set[tuple[str, str]]) -> list[str]:
    """The picture as a Mermaid flowchart: a box a room, in the building that it belongs to."""
    text = ["```mermaid", "flowchart TB"]
    for building in (*BUILDINGS, "browser_client"):
        inside = [name for name in names if name.split(".")[0] == building]
        text.append(f'  subgraph {building}["{building}/"]')
        text += [f'    {_id(name)}["{name.rpartition(".")[2]}"]' for name in inside]
        text.append("  end")
    text += [f"  {_id(start)} --> {_id(end)}" for start, end in sorted(pairs)]
    return [*text, "```"]


def _id(name: str) -> str:
    return "room_" + name.replace(".", "_")


def paragraph(name: str) -> str:
    """What a room says of itself."""
    if name.startswith("browser_client."):
        return (SOURCES / name.partition(".")[2] / "README.md").read_text().strip()
    said = inspect.getdoc(importlib.import_module(name))
    if not said:
        raise SystemExit(f"{name} says nothing of itself: give its __init__ a docstring")
    return said.replace("``", "`")


def rendered() -> str:
    """The page's text."""
    names = rooms()
    folders, page_pairs = page_rooms()
    page_names = [f"browser_client.{name}" for name in folders]
    pairs = arrows(names) | {(f"browser_client.{a}", f"browser_client.{b}") for a, b in page_pairs}
    text = [HEAD, *drawing([*names, *page_names], pairs), ""]
    for building in (*BUILDINGS, "browser_client"):
        text.append(f"## {building}/{'src/' if building == 'browser_client' else ''}\n")
        if building in BUILDINGS and building not in WHOLE:
            text.append(f"{paragraph(building)}\n")
        for name in [one for one in (*names, *page_names) if one.split(".")[0] == building]:
            title = "" if name in WHOLE else f"**{name.rpartition('.')[2]}.** "
            text.append(f"{title}{paragraph(name)}\n")
    return "\n".join(text).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    """Writes the page, or says by the exit code whether it is up to date."""
    sys.path.insert(0, str(ROOT))
    return keep(PAGE, rendered(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
