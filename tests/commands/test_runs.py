"""Runs are listed, shown, started again from what is shown, and cancelled so that every part drops them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.cli.run_file import RunFileError, as_toml, read_run_file
from agents.words.run_config import LabellingSpec, QuorumSpec
from tests.builders import config, run_started
from tests.commands.conftest import Shell
from tests.conftest import wait_for

START = ("run", "start", "--users", "3", "--images", "2", "--rounds", "2")


async def up(shell: Shell, *options: str) -> None:
    running = await shell.start("up", "--port", "0", "--nats-port", "0", *options)
    await running.says("Stop with Ctrl-C")


async def events(shell: Shell, run: str) -> list[dict[str, object]]:
    said = await shell.run("record", run, "-o", f"{run}.jsonl")
    assert run in said
    return [json.loads(line) for line in (shell.folder / f"{run}.jsonl").read_text().splitlines()]


@pytest.mark.timeout(180)
async def test_runs_are_listed_shown_and_started_again(shell: Shell) -> None:
    await up(shell)
    assert "no runs" in await shell.run("run", "list")
    await shell.run(*START, "--name", "shop", "--encoding", "int8", "--grace", "1.5", "--partition", "iid")
    await shell.run(*START, "--name", "demo-20261124-101820-378c")
    listed = (await shell.run("run", "list")).splitlines()
    assert [line.split()[0] for line in listed] == ["run", "shop", "demo-20261124-101820-378c"]
    assert listed[0].split() == ["run", "started", "status", "rounds", "score"]
    assert listed[1].split()[3:5] == ["waiting", "0/2"]
    assert max(map(len, listed)) <= 60
    shown = await shell.run("run", "show", "shop")
    assert "3 with 2 images" in shown
    assert "int8" in shown
    (shell.folder / "shop.toml").write_text(await shell.run("run", "show", "shop", "--toml"))
    await shell.run("run", "start", "--name", "again", "--config", "shop.toml")
    first, second = [json.loads(await shell.run("run", "show", run, "--json")) for run in ("shop", "again")]
    assert {**first, "run": ""} == {**second, "run": ""}
    assert "run_unknown" in await shell.run("run", "show", "nobody", code=1)
    assert "has made no model yet" in await shell.run("model", "export", "shop", "-o", "model", "--format", "raw")
    said = await shell.run("run", "start", "--config", "shop.toml", "--users", "4", code=2)
    assert "--users belongs into the file" in said


async def test_a_cancelled_run_is_dropped_by_every_agent_and_client(shell: Shell) -> None:
    await up(shell)
    client = await shell.start("client", "--native", "1")
    await client.says("connected to")
    await shell.run("run", "start", "--users", "40", "--images", "20", "--epochs", "100", "--name", "long", "--go")
    (log,) = await wait_for(lambda: list((shell.folder / ".fedbus" / "logs").glob("*-native-1.log")), within_s=30)

    async def at_work() -> bool:
        found = [json.loads(line) for line in (await shell.run("clients", "--json")).splitlines()]
        return any(one["leases"] for one in found)

    await wait_for(at_work, within_s=60)
    clients = (await shell.run("clients")).splitlines()
    assert clients[0].split() == ["client", "engine", "tasks", "since"]
    assert max(map(len, clients)) <= 60
    assert "long is cancelled" in await shell.run("run", "cancel", "long", "--reason", "a mistake")
    await wait_for(lambda: "task taken back: the run is cancelled" in log.read_text(), within_s=30)

    async def idle() -> bool:
        return not await at_work()

    await wait_for(idle, within_s=30)
    assert "cancelled: a mistake" in await shell.run("run", "show", "long")
    assert "long is cancelled" in await shell.run("run", "cancel", "long")
    assert "no runs" in await shell.run("run", "list", "--open")
    # Everything goes on with the next run.
    await shell.run("run", "start", "--users", "2", "--images", "2", "--rounds", "1", "--name", "next", "--go")
    assert "completed" in await shell.run("watch", "next")
    assert "had ended before: completed" in await shell.run("run", "cancel", "next", code=1)
    ends = [one for one in await events(shell, "long") if "run.finished" in json.dumps(one)]
    assert len(ends) == 1


def test_every_setting_survives_the_way_through_a_file(tmp_path: Path) -> None:
    wanted = config(rounds=7, users=9, fraction=0.5, grace_s=2.0, deadline_s=33.0, extensions=5).model_copy(
        update={
            "labelling": LabellingSpec(provider="openai", model='with "quotes" and \\', images_per_request=7),
            "max_update_norm": 1.5,
            "over_norm": "clip",
            "seed": 2**32 - 1,
            "fraction": 0.25,
        }
    )
    path = tmp_path / "run.toml"
    path.write_text(as_toml(run_started(wanted)))
    assert read_run_file(path).config == wanted


def test_what_a_file_leaves_out_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("rounds = 3\n[quorum]\nfraction = 0.5\n[sources]\npartition = 'iid'\n")
    read = read_run_file(path)
    assert (read.config.rounds, read.config.users, read.config.quorum) == (3, 100, QuorumSpec(fraction=0.5))
    assert read.config.training.learning_rate == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("round = 3", "no setting round"),
        ("[quorum]\nshare = 1", "no setting quorum.share"),
        ("rounds = 0", "rounds"),
        ("rounds = 'many'", "rounds"),
        ("quorum = 1", "quorum"),
        ("training = 1", "settings"),
        ("[objects]\ndataset = 'x'", "dataset"),
        ("[sources]\nfolder = 'x'", "folder"),
        ("rounds", "no TOML"),
    ],
)
def test_a_file_that_says_what_no_run_has_is_refused_in_words(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(RunFileError, match=said):
        read_run_file(path)


def test_a_file_that_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="cannot be read"):
        read_run_file(tmp_path / "none.toml")
