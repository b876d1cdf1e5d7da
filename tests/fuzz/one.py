"""Fuzzes one target with atheris in this process: ``python -m tests.fuzz.one TARGET`` and options of libFuzzer."""

from __future__ import annotations

import random
import sys

import atheris

with atheris.instrument_imports(include=["agents", "artifacts", "bus", "data"]):
    from tests.fuzz.targets import TARGETS, refused

from tests.fuzz.mutate import mutated


def main() -> None:
    """Runs until libFuzzer has done its number of inputs or found one that breaks the parser; it ends the process."""
    target = TARGETS[sys.argv.pop(1)]
    seeds = target.seeds()

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        # libFuzzer's own mutations know what the code compared the input with.
        if rng.random() < 0.3:
            return atheris.Mutate(data, max_size)
        return mutated(rng.choice(seeds) if rng.random() < 0.2 else data, rng, seeds)[:max_size]

    atheris.Setup(sys.argv, lambda data: refused(target, data), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
