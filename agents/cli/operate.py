"""The commands that look after a bus: ``verify`` and ``gc``."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

import typer

from agents.audit.verify import Verdict, verify_run
from agents.cli.console import console, errors
from agents.cli.finding import CONNECT_S, find_run
from agents.runtime.connection import use_running_fedbus
from bus.client import Bus
from bus.objects.store import FRESH_S
from bus.process.logs import escaped
from bus.words.payload import COLLECTOR


def verify(run: Annotated[str, typer.Argument(help="The run.")]) -> None:
    """Check a run's ledger: every event single, every update present, every model the aggregate of its updates."""
    use_running_fedbus()
    verdict = asyncio.run(_verify(run))
    console.print(
        f"{run}: {verdict.events} events, {verdict.updates} accepted updates, {verdict.images} images, "
        f"{verdict.models} models recomputed"
    )
    for problem in verdict.problems:
        errors.print(str(problem), soft_wrap=True, markup=False)
    if verdict.problems:
        errors.print(f"{len(verdict.problems)} problems")
        raise typer.Exit(1)
    console.print("The ledger holds.")


async def _verify(run: str) -> Verdict:
    async with Bus.connect(name="verify", wait_s=CONNECT_S) as bus:
        await find_run(bus, run)
        return await verify_run(bus, run)


def gc(
    older_than: Annotated[
        float, typer.Option("--older-than", min=2 * FRESH_S, help="Only what is older, in seconds.")
    ] = 3_600,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete old objects that no event leads to, and what interrupted uploads left."""
    use_running_fedbus(role=COLLECTOR)
    asyncio.run(_gc(older_than, dry_run))


async def _gc(older_than: float, dry_run: bool) -> None:
    async with Bus.connect(name="gc", wait_s=CONNECT_S) as bus:
        writes = await bus.objects.collect_orphans(older_than, dry_run=dry_run)
        objects = size = 0
        async with contextlib.aclosing(bus.expired_objects(older_than, dry_run=dry_run)) as refs:
            async for ref in refs:
                objects, size = objects + 1, size + ref.size
                if dry_run:
                    console.print(f"{ref.sha256}  {ref.size:>12,}  {escaped(ref.media_type)}", soft_wrap=True)
        would = "would be deleted" if dry_run else "deleted"
        console.print(f"{objects} objects of {size:,} bytes and {writes} interrupted writes {would}")
