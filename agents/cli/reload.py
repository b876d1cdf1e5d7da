"""Restarts the agents whose source files change, and builds the page anew when the browser client's do."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from watchfiles import awatch

from agents.cli.here import AGENTS
from agents.cli.system import System
from agents.runtime.shipped import PACKAGES

PYTHON_FOLDERS = ("bus", "agents", "artifacts", "data")
PAGE_FOLDER = PACKAGES / "browser_client"
log = logging.getLogger(__name__)


async def reload_on_change(system: System) -> None:
    """Watches the sources for ever; a burst of saves counts as one change."""
    folders = [PACKAGES / name for name in PYTHON_FOLDERS]
    sources = PAGE_FOLDER / "src"
    async for changes in awatch(*folders, *([sources] if sources.is_dir() else [])):
        changed = [Path(path) for _, path in changes]
        for name in agents_to_restart(changed):
            log.info("%s changed: restarting", name)
            await system.processes.stop(name)
            system.processes.start(system.agent(name))
        if any(path.is_relative_to(PAGE_FOLDER) for path in changed):
            await _build_page()


def agents_to_restart(changed: Iterable[Path]) -> list[str]:
    """The agents that the changed files belong to; a file that agents share restarts all of them."""
    names: set[str] = set()
    for path in changed:
        if path.suffix != ".py" or not path.is_relative_to(PACKAGES):
            continue
        parts = path.relative_to(PACKAGES).parts
        if parts[:2] in (("agents", "cli"), ("agents", "client"), ("agents", "audit")):
            continue
        own = Path(parts[1]).stem if parts[0] == "agents" and len(parts) > 1 else ""
        names |= {own} if own in AGENTS else set(AGENTS)
    return sorted(names)


async def _build_page() -> None:
    npm = shutil.which("npm")
    if npm is None:
        log.warning("the page changed, but there is no npm to build it with: install Node 20")
        return
    process = await asyncio.create_subprocess_exec(
        npm, "run", "build", cwd=PAGE_FOLDER, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, problem = await process.communicate()
    if process.returncode:
        log.error("the page does not build:\n%s", problem.decode(errors="replace").strip())
    else:
        log.info("the page was built anew: reload it in the browser")
