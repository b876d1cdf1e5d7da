"""``fedbus dlq``: what nobody could understand or handle."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from agents.cli.console import console
from agents.cli.finding import CONNECT_S
from agents.runtime.connection import use_running_fedbus
from bus.client import Bus
from bus.errors import FedbusError
from bus.process.logs import escaped
from bus.stream.dead_letters import DeadLetter
from bus.work.retries import LetterMalformedError, LetterUnclaimedError, Retry

SHOWN_BYTES = 4_000
FIRST_SHOWN, NEWEST_SHOWN = 20, 80
app = typer.Typer(no_args_is_help=True, help="Look at what nobody could understand or handle, and give it back.")


class LetterUnknownError(FedbusError):
    """No dead letter has this sequence."""

    code = "letter_unknown"


@app.command("list")
def dlq_list(all_: Annotated[bool, typer.Option("--all", help="However many they are.")] = False) -> None:
    """List the dead letters with their reasons; of many, the first and the newest."""
    use_running_fedbus()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("sequence", "when", "given up by", "what and why"):
        table.add_column(name, overflow="fold")
    letters, count = asyncio.run(_listed(all_=all_))
    for one in letters:
        table.add_row(
            str(one.sequence),
            f"{one.time.astimezone():%m-%d %H:%M:%S}",
            escaped(one.consumer),
            Text(f"{escaped(one.subject)}: {escaped(one.reason)}{_asked(one)}{_unkept(one)}"),
        )
    console.print(table if letters else "no dead letters")
    if count > len(letters):
        console.print(f"{count - len(letters)} between them are left out (--all shows them)")


def _asked(letter: DeadLetter) -> str:
    return f" (tried again since {letter.retry_at.astimezone():%H:%M:%S})" if letter.retry_at else ""


def _unkept(letter: DeadLetter) -> str:
    return f" ({letter.unkept} like it came before and are not kept)" if letter.unkept else ""


@app.command("show")
def dlq_show(sequence: Annotated[int, typer.Argument(min=1, help="Stream sequence, as dlq list shows it.")]) -> None:
    """Show one dead letter in full."""
    use_running_fedbus()
    for one in _with_sequence(asyncio.run(_dead_letters()), sequence):
        console.print(f"{escaped(one.subject)}: {escaped(one.reason)}", soft_wrap=True, markup=False)
        body = one.body[:SHOWN_BYTES].decode(errors="replace")
        console.print(escaped(body), soft_wrap=True, markup=False)


@app.command("retry")
def dlq_retry(
    sequence: Annotated[int | None, typer.Argument(min=1, help="Stream sequence, as dlq list shows it.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every dead letter that can be understood.")] = False,
) -> None:
    """Give a dead letter back to the worker that gave it up; it leaves the list once it is handled."""
    if (sequence is None) != all_:
        raise typer.BadParameter("say which: a sequence or --all")
    use_running_fedbus()
    asyncio.run(_retry(sequence))


async def _retry(sequence: int | None) -> None:
    async with Bus.connect(name="dlq", wait_s=CONNECT_S) as bus:
        letters = await bus.dead_letters()
        if sequence is not None:
            for one in _with_sequence(letters, sequence):
                _say_retry(one, await bus.retry(one))
            return
        stayed = 0
        for one in letters:
            try:
                _say_retry(one, await bus.retry(one))
            except (LetterMalformedError, LetterUnclaimedError) as error:
                console.print(f"{error.message} ({error.hint}) [{error.code}]", soft_wrap=True, markup=False)
                stayed += 1
        console.print(f"{len(letters) - stayed} dead letters given back, {stayed} stay")


def _say_retry(letter: DeadLetter, retry: Retry) -> None:
    if retry.asked:
        console.print(f"{letter.sequence} goes to {', '.join(retry.asked)} again")
    if retry.asked_before:
        console.print(f"{letter.sequence} has gone to {', '.join(retry.asked_before)} again and is not handled yet")


def _with_sequence(letters: list[DeadLetter], sequence: int) -> list[DeadLetter]:
    """An event that several consumers gave up has several letters.

    Raises:
        LetterUnknownError: it has none.
    """
    if found := [one for one in letters if one.sequence == sequence]:
        return found
    raise LetterUnknownError(f"there is no dead letter {sequence}", hint="fedbus dlq list")


async def _listed(*, all_: bool) -> tuple[list[DeadLetter], int]:
    """What is to be shown, and how many there are."""
    if all_:
        letters = await _dead_letters()
        return letters, len(letters)
    async with Bus.connect(name="dlq", wait_s=CONNECT_S) as bus:
        return await bus.ends_of_dead_letters(FIRST_SHOWN, NEWEST_SHOWN)


async def _dead_letters() -> list[DeadLetter]:
    async with Bus.connect(name="dlq", wait_s=CONNECT_S) as bus:
        return await bus.dead_letters()
