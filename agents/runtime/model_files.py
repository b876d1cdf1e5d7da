"""What a model is made from and where it is made, with memory that stays flat: large arrays lie in mapped files."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.encodings import Buffer
from agents.core.rounds.aggregation import NewArray
from agents.words.events import RoundPlanned
from bus.objects.store import ObjectStore
from bus.process.folders import temporary_folder
from bus.words.values import Ref


@contextlib.asynccontextmanager
async def local_parents(objects: ObjectStore, plan: RoundPlanned) -> AsyncIterator[tuple[Buffer, Buffer | None]]:
    """What a round's model is made from beside its updates: its base model, and the server's state if it names one."""
    async with objects.local(plan.base_model) as parent:
        if plan.server_state is None:
            yield parent, None
            return
        async with objects.local(plan.server_state) as before:
            yield parent, before


@contextlib.contextmanager
def mapped_arrays() -> Iterator[NewArray]:
    """Makes float32 arrays that lie in files of a folder, which ends with the block; see ``put_mapped``."""
    with temporary_folder("model") as folder:

        def new(count: int) -> NDArray[np.float32]:
            return np.memmap(folder / uuid4().hex, "<f4", "w+", shape=(count,))

        yield new


async def put_mapped(objects: ObjectStore, values: NDArray[np.float32], media_type: str) -> Ref:
    """Stores the file of an array that ``mapped_arrays`` made."""
    assert isinstance(values, np.memmap)
    assert values.filename is not None
    values.flush()
    return await objects.put_file(Path(values.filename), media_type)
