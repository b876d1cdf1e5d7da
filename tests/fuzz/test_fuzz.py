"""A short fuzz of every parser, and every input that ever broke one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Target, refused

REGRESSIONS = Path(__file__).parent / "regressions"
FOUND = sorted(path for path in REGRESSIONS.glob("*/*") if path.is_file())
ANY = list(TARGETS.values())


@pytest.mark.parametrize("target", ANY, ids=lambda target: target.name)
def test_a_parser_takes_its_valid_inputs(target: Target) -> None:
    taken = [not refused(target, seed) for seed in target.seeds()]
    assert any(taken) or target.name in {"artifact-manifest", "dataset"}, "no seed reaches the end of the parser"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("target", ANY, ids=lambda target: target.name)
def test_any_bytes_are_taken_or_refused_with_a_typed_error(target: Target) -> None:
    seeds = target.seeds()
    near = st.builds(
        lambda seed, number: mutated(seed, random.Random(number), seeds), st.sampled_from(seeds), st.integers(0, 2**32)
    )

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(near | st.binary(max_size=200))
    def check(data: bytes) -> None:
        refused(target, data)

    check()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name[:14]}")
@pytest.mark.timeout(10)
def test_an_input_that_once_broke_a_parser_does_so_no_more(path: Path) -> None:
    assert path.parent.name in TARGETS
    refused(TARGETS[path.parent.name], path.read_bytes())
