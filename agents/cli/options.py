"""What several commands take: the options that make a run's config."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from agents.core.learning.augment import default_augmentation
from agents.core.learning.encodings import encoded_size
from agents.core.strategies.registry import built_in, strategy_named
from agents.runtime.shipped import DEFAULT_ARTIFACTS, DEFAULT_HELD_OUT_DATA, DEFAULT_USERS_DATA
from agents.words.run_config import LabellingSpec, QuorumSpec, RunConfig, TrainingSpec
from artifacts.manifest import load_manifest

CLIP_TO_MEDIAN = 1.5
"""Costs honest clients nothing on the default task, and bounds what ten of a hundred can do: see bench_hostile."""


Users = Annotated[int, typer.Option("--users", min=1, max=100_000, help="Simulated users.")]
Images = Annotated[int, typer.Option("--images", min=1, max=1_000, help="Images of each user.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, max=10_000, help="Federated rounds.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Everything random follows from it.")]
Quorum = Annotated[
    float,
    typer.Option("--quorum", min=0.0001, help="Updates that close a round: a share up to 1, or a count."),
]
Fraction = Annotated[float, typer.Option("--fraction", min=0.0001, max=1, help="Share of the users in each round.")]
Labeller = Annotated[str, typer.Option("--labeller", help="Who labels: truth, recorded or openai.")]
LabelModel = Annotated[str, typer.Option("--label-model", help="Model that the openai labeller asks.")]
LabelNoise = Annotated[float, typer.Option("--label-noise", min=0, max=1, help="truth only: share of wrong labels.")]
Artifacts = Annotated[Path, typer.Option("--artifacts", help="Folder of training artifacts.")]
Data = Annotated[Path, typer.Option("--data", help="Dataset folder with the users' images.")]
HeldOut = Annotated[Path, typer.Option("--held-out", help="Dataset folder to evaluate on.")]
Partition = Annotated[
    str, typer.Option("--partition", help="Images per user: in-order, iid, dirichlet:ALPHA, pathological:K, by-folder.")
]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", min=1e-9, max=100, help="Of round 1; default: the artifacts' own.")
]
LearningRateDecay = Annotated[
    float, typer.Option("--learning-rate-decay", min=0.0001, max=1, help="Factor for each further round.")
]
Epochs = Annotated[int, typer.Option("--epochs", min=1, max=100, help="Passes over the mismatched images.")]
Augmentations = Annotated[int, typer.Option("--augmentations", min=0, max=63, help="Copies beside the original.")]
Encoding = Annotated[str, typer.Option("--encoding", help="Of updates: float32, float16, int8 or topk:FRACTION.")]
Deadline = Annotated[float, typer.Option("--deadline", min=1, max=86_400, help="Seconds that a round may take.")]
Grace = Annotated[float, typer.Option("--grace", min=0, max=3_600, help="Seconds for stragglers after the quorum.")]
MaxNorm = Annotated[float | None, typer.Option("--max-update-norm", min=0, help="Largest L2 norm of an update.")]
OverNorm = Annotated[
    str, typer.Option("--over-norm", help="What becomes of an update past that norm: refuse, or clip it to the norm.")
]
ClipToMedian = Annotated[
    float,
    typer.Option(
        "--clip-to-median", min=0, help="Scale updates down to this many times the round's median L2 norm; 0: do not."
    ),
]
StrategyName = Annotated[
    str, typer.Option("--strategy", help=f"How updates become a model: {', '.join(built_in())}, or module:Class.")
]
StrategySet = Annotated[
    list[str] | None,
    typer.Option("--strategy-set", metavar="NAME=VALUE", help="A setting of the strategy; may be repeated."),
]

ARTIFACTS, DATA, HELD_OUT = DEFAULT_ARTIFACTS, DEFAULT_USERS_DATA, DEFAULT_HELD_OUT_DATA
LABELLERS = ("truth", "recorded", "openai")


def make_config(
    *,
    artifacts: Path,
    users: int,
    images: int,
    rounds: int,
    seed: int,
    quorum: float,
    fraction: float = 1.0,
    labeller: str = "truth",
    label_model: str = "gpt-4o",
    label_noise: float = 0.05,
    learning_rate: float | None = None,
    learning_rate_decay: float = 0.75,
    epochs: int = 1,
    augmentations: int = 6,
    encoding: str = "float32",
    deadline: float = 300.0,
    grace: float = 0.0,
    max_update_norm: float | None = None,
    over_norm: str = "refuse",
    clip_to_median: float = CLIP_TO_MEDIAN,
    strategy: str = "fedavg",
    strategy_set: Sequence[str] | None = None,
) -> RunConfig:
    """The run config that the options name; what a strategy is not told is written out too, as its default.

    Raises:
        typer.BadParameter: an option is out of range in a way that typer cannot check.
        FedbusError: there is no such strategy or encoding, or the strategy has no such setting.
    """
    if labeller not in LABELLERS:
        raise typer.BadParameter(f"--labeller is one of {', '.join(LABELLERS)}, not {labeller!r}")
    if over_norm not in ("refuse", "clip"):
        raise typer.BadParameter(f"--over-norm is refuse or clip, not {over_norm!r}")
    if quorum > 1 and quorum != int(quorum):
        raise typer.BadParameter("--quorum is a share up to 1, or a whole number of updates")
    if quorum > users:
        raise typer.BadParameter(f"--quorum {quorum:g} is more than the run's {users} users")
    manifest = load_manifest(artifacts, verify=False)
    settings = strategy_named(strategy, parse_settings(strategy_set or ())).model_dump()
    encoded_size(encoding, 1)
    rate = learning_rate or manifest.optimizer.learning_rate
    return RunConfig(
        seed=seed,
        rounds=rounds,
        users=users,
        images_per_user=images,
        fraction=fraction,
        kind=manifest.kind,
        quorum=QuorumSpec(fraction=quorum if quorum <= 1 else quorum / users, deadline_s=deadline, grace_s=grace),
        labelling=LabellingSpec.model_validate(
            {"provider": labeller, "model": label_model, "error_rate": label_noise if labeller == "truth" else 0.0}
        ),
        training=TrainingSpec(
            epochs=epochs,
            augmentations=augmentations,
            learning_rate=rate,
            learning_rate_decay=learning_rate_decay,
            augmentation=default_augmentation(),
            encoding=encoding,
        ),
        max_update_norm=max_update_norm,
        over_norm="clip" if over_norm == "clip" else "refuse",
        clip_to_median=clip_to_median or None,
        strategy=strategy,
        strategy_settings=settings,
    )


def parse_settings(texts: Sequence[str]) -> dict[str, bool | int | float | str]:
    """The settings that ``NAME=VALUE`` texts name; a value is a number, true or false, or else a text.

    Raises:
        typer.BadParameter: one is no NAME=VALUE, or names a setting again.
    """
    settings: dict[str, bool | int | float | str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"--strategy-set is NAME=VALUE, not {text!r}")
        if name in settings:
            raise typer.BadParameter(f"--strategy-set names {name} more than once")
        settings[name] = _value(value)
    return settings


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
