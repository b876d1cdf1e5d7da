"""Work beside other work: how it ends, and that whoever waits for it can name the failure that he expects."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from agents.runtime.tasks import background, together
from bus.errors import ObjectMissingError


async def missing(name: str) -> NoReturn:
    raise ObjectMissingError(name)


async def value(number: int) -> int:
    return number


async def test_results_come_in_order_and_the_first_failure_is_raised_as_itself() -> None:
    assert await together(value(number) for number in range(3)) == [0, 1, 2]
    with pytest.raises(ObjectMissingError, match="one"):
        await together([missing("one"), missing("two")])


async def test_a_failure_in_a_group_inside_a_group_is_raised_as_itself() -> None:
    async def nested() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(missing("deep"))

    with pytest.raises(ObjectMissingError, match="deep"):
        async with background(nested()):
            await asyncio.Event().wait()


async def test_where_body_and_background_both_fail_the_first_is_raised_and_all_are_its_cause() -> None:
    async def at_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await missing("beside")

    async def both() -> None:
        async with background(at_the_end()):
            await asyncio.sleep(0)
            await missing("body")

    with pytest.raises(ObjectMissingError) as caught:
        await both()
    assert isinstance(caught.value.__cause__, BaseExceptionGroup)
    assert {str(one) for one in caught.value.__cause__.exceptions} >= {str(caught.value)}
