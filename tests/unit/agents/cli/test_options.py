"""What the command line takes, and what it says about the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from agents.cli.client_mix import MAX_CLIENTS, ClientMix, parse_clients
from agents.cli.main import app
from agents.cli.options import ARTIFACTS, make_config, parse_settings
from bus.errors import FedbusError


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


def test_a_strategy_is_told_its_settings_and_the_config_says_all_of_them() -> None:
    options = {"artifacts": ARTIFACTS, "users": 1, "images": 1, "rounds": 1, "seed": 0, "quorum": 1.0}
    config = make_config(**options, strategy="fedadam", strategy_set=["server_learning_rate=0.1", "tau=1e-2"])
    assert config.strategy_settings == {"server_learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 0.01}
    # A config without settings is, byte for byte, what it was before there were any: so is its digest.
    assert "strategy_settings" not in make_config(**options).model_dump_json()
    assert parse_settings(["a=1", "b=0.5", "c=true", "d=x=y"]) == {"a": 1, "b": 0.5, "c": True, "d": "x=y"}


@pytest.mark.parametrize("texts", [["tau"], ["=1"], ["tau=1", "tau=2"]])
def test_a_setting_is_a_name_and_a_value_once(texts: list[str]) -> None:
    with pytest.raises(typer.BadParameter):
        parse_settings(texts)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--strategy", "fedprox"], "strategy_unknown"),
        (["--strategy", "fedadam", "--strategy-set", "learning_rate=1"], "strategy_settings"),
        (["--encoding", "int4"], "encoding"),
    ],
)
@pytest.mark.parametrize("command", [["run", "start"], ["demo", "--clients", "none"]])
def test_an_unknown_strategy_or_setting_is_refused_before_anything_is_started(
    command: list[str], arguments: list[str], code: str
) -> None:
    done = fedbus(*command, *arguments)
    assert done.returncode == 1
    assert f"[{code}]" in done.stderr


def test_the_learning_rate_comes_from_the_artifacts_unless_it_is_given() -> None:
    options = {"artifacts": ARTIFACTS, "users": 1, "images": 1, "rounds": 1, "seed": 0, "quorum": 1.0}
    assert make_config(**options).training.learning_rate == pytest.approx(0.03)
    assert make_config(**options, learning_rate=0.5).training.learning_rate == 0.5


@pytest.mark.parametrize(("asked", "found"), [({}, 1.5), ({"clip_to_median": 3.0}, 3.0), ({"clip_to_median": 0}, None)])
def test_a_run_clips_to_the_median_unless_it_is_told_not_to(asked: dict[str, float], found: float | None) -> None:
    config = make_config(artifacts=ARTIFACTS, users=3, images=2, rounds=1, seed=0, quorum=1.0, **asked)
    assert config.clip_to_median == found


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


@pytest.mark.parametrize(
    ("command", "environment", "code"),
    [
        (["demo", "--clients", "native:1", "--labeller", "openai"], {"OPENAI_API_KEY": ""}, "openai_key_missing"),
        (["demo", "--clients", "native:1", "--labeller", "openai"], {"OPENAI_API_KEY": "a b"}, "openai_key_unusable"),
        (
            ["demo", "--clients", "native:1", "--labeller", "recorded"],
            {"FEDBUS_LABELS_FILE": ""},
            "labels_file_invalid",
        ),
        (["up"], {"OPENAI_API_KEY": "a b"}, "openai_key_unusable"),
    ],
)
def test_what_the_labeller_needs_of_this_machine_is_asked_for_before_anything_is_started(
    command: list[str], environment: dict[str, str], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner(env=environment).invoke(app, command)
    assert isinstance(result.exception, FedbusError)
    assert result.exception.code == code
    assert list(tmp_path.iterdir()) == []
