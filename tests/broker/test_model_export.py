"""A run's model comes from the bus in every form, and each form is the same model."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import pytest

from agents.audit.model_comparison import compare_models
from agents.audit.model_export import (
    ExportFolderError,
    Form,
    ModelUnknownError,
    check_folder,
    fetched_model,
    listed,
    write_model,
)
from agents.cli.run_setup import RunSources, start_run
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from agents.words.events import ModelPublished, RunStarted
from artifacts.errors import TakeOutError
from bus.client import Bus
from data.dataset import load_dataset
from data.shards import encode_shard
from tests.builders import config


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A hundred labelled images that nobody trained on."""
    sample = load_dataset(RunSources().held_out)
    path = tmp_path / "shard.safetensors"
    path.write_bytes(encode_shard(sample.images[:100], sample.labels[:100]))
    return path


async def started(bus: Bus, run: str) -> RunStarted:
    """A run of the shipped task with the models of two rounds."""
    event = await start_run(bus, run, config(rounds=2, users=1), RunSources())
    base = np.frombuffer(await bus.objects.get(event.base_model), "<f4")
    for number in (1, 2):
        model = await bus.objects.put((base * (1 - number / 10)).astype("<f4").tobytes())
        await bus.publish(
            ModelPublished(
                run=run,
                round=number,
                model=model,
                parent=event.base_model,
                inputs_digest=model.sha256,
                strategy="fedavg",
                updates=1,
                examples=1,
            )
        )
    return event


@pytest.mark.parametrize(
    ("rounds", "said"),
    [((0,), "only round 0, the base"), ((0, 1), "0 (its base), 1"), ((2, 0, 1), ", 1, 2"), ((0, 1, 2, 3), ", 1 to 3")],
)
def test_the_rounds_that_have_a_model_are_listed(rounds: tuple[int, ...], said: str) -> None:
    assert said in listed(rounds)


async def test_every_form_of_a_model_is_the_same_model(bus: Bus, unique_run: str, tmp_path: Path, shard: Path) -> None:
    event = await started(bus, unique_run)
    async with fetched_model(bus, event, None) as model:
        write_model(model, tmp_path / "whole", bases=(DEFAULT_ARTIFACTS,))
        write_model(model, tmp_path / "adapter", [Form.ADAPTER])
    assert model.round == 2
    raw = tmp_path / "whole" / "parameters.f32"
    assert hashlib.sha256(raw.read_bytes()).hexdigest() == model.sha256
    for other in (tmp_path / "whole" / "inference.onnx", tmp_path / "whole", tmp_path / "adapter"):
        result = await asyncio.to_thread(compare_models, raw, other, shard, artifacts=DEFAULT_ARTIFACTS)
        assert result.same_prediction == 100, other
        assert result.a.score.loss == pytest.approx(result.b.score.loss, abs=1e-4)


async def test_only_an_earlier_export_may_be_replaced(bus: Bus, unique_run: str, tmp_path: Path) -> None:
    event = await started(bus, unique_run)
    async with fetched_model(bus, event, None) as model:
        for form in (Form.ONNX, Form.ADAPTER, Form.RAW):
            out = tmp_path / form.value
            check_folder(out)
            write_model(model, out, [form])
            check_folder(out)
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
    with pytest.raises(ExportFolderError, match="not empty"):
        check_folder(tmp_path)


async def test_an_earlier_round_can_be_had_and_an_unknown_one_is_refused(
    bus: Bus, unique_run: str, tmp_path: Path
) -> None:
    event = await started(bus, unique_run)
    for number in (0, 1):
        async with fetched_model(bus, event, number) as model:
            write_model(model, tmp_path / str(number), [Form.RAW])
    assert (tmp_path / "0" / "parameters.f32").read_bytes() == (DEFAULT_ARTIFACTS / "trainable.f32").read_bytes()
    assert (tmp_path / "1" / "parameters.f32").read_bytes() != (tmp_path / "0" / "parameters.f32").read_bytes()
    with pytest.raises(ModelUnknownError, match="round 3"):
        async with fetched_model(bus, event, 3):
            pass


async def test_without_the_base_models_config_its_layout_is_refused_before_anything_is_written(
    bus: Bus, unique_run: str, tmp_path: Path
) -> None:
    event = await started(bus, unique_run)
    async with fetched_model(bus, event, None) as model:
        with pytest.raises(TakeOutError, match="base model") as refused:
            write_model(model, tmp_path / "out", bases=(tmp_path,))
    assert "--base" in refused.value.hint
    assert not (tmp_path / "out").exists()
