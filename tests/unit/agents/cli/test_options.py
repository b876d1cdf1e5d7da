"""What the command line takes, and what it says about the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from agents.cli.options import ARTIFACTS, MAX_CLIENTS, ClientMix, make_config, parse_clients


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("browser:2", ClientMix(browser=2)),
        ("native:3", ClientMix(native=3)),
        ("browser:1,native:1", ClientMix(browser=1, native=1)),
        ("native:1, native:2", ClientMix(native=3)),
        ("none", ClientMix()),
        (f"native:{MAX_CLIENTS}", ClientMix(native=MAX_CLIENTS)),
    ],
)
def test_clients_are_named_by_kind_and_count(text: str, mix: ClientMix) -> None:
    assert parse_clients(text) == mix


@pytest.mark.parametrize("text", ["", "browser", "firefox:1", "native:0", "native:-1", f"native:{MAX_CLIENTS + 1}"])
def test_other_clients_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_clients(text)


@pytest.mark.parametrize(("quorum", "fraction"), [(1.0, 1.0), (0.5, 0.5), (30, 0.3), (100, 1.0)])
def test_a_quorum_is_a_share_or_a_count(quorum: float, fraction: float) -> None:
    config = make_config(artifacts=ARTIFACTS, users=100, images=1, rounds=1, seed=0, quorum=quorum)
    assert config.quorum.fraction == pytest.approx(fraction)


@pytest.mark.parametrize("wrong", [{"quorum": 1.5}, {"quorum": 101}, {"labeller": "guess"}])
def test_options_that_typer_cannot_check_are_checked(wrong: dict[str, object]) -> None:
    options: dict[str, object] = {"users": 100, "images": 1, "rounds": 1, "seed": 0, "quorum": 1.0, **wrong}
    with pytest.raises(typer.BadParameter):
        make_config(artifacts=ARTIFACTS, **options)  # type: ignore[arg-type]


def test_the_learning_rate_comes_from_the_artifacts_unless_it_is_given() -> None:
    options = {"artifacts": ARTIFACTS, "users": 1, "images": 1, "rounds": 1, "seed": 0, "quorum": 1.0}
    assert make_config(**options).training.learning_rate == pytest.approx(0.03)
    assert make_config(**options, learning_rate=0.5).training.learning_rate == 0.5


def fedbus(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agents.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("demo", "--clients", "lynx:1"), "browser:N or native:N"),
        (("demo", "--usres", "3"), "--users"),
        (("demo", "--users", "0"), "greater than or equal to 1"),
        (("agent", "manager"), "labeller"),
        (("replay", "no-such-file"), "does not exist"),
        (("client",), "--native N or --browser N"),
    ],
)
def test_a_wrong_argument_gets_one_clear_line(arguments: tuple[str, ...], says: str) -> None:
    done = fedbus(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_help_names_every_command() -> None:
    done = fedbus("--help")
    assert done.returncode == 0
    for command in ("demo", "up", "agent", "run", "round", "client", "watch", "record", "replay", "report", "doctor"):
        assert command in done.stdout
