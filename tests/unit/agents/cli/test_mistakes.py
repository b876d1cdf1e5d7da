"""Every mistake of a person is answered with one line that has a code and the next step, and never with a traceback."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from agents.cli.main import main

MISTAKES = {
    "runlist": "Did you mean 'run'? (see fedbus --help) [usage]",
    "run lst": "Did you mean 'list'? (see fedbus run --help) [usage]",
    "--nats": "No such option: --nats (see fedbus --help) [usage]",
    "watch": "Missing argument 'run' (see fedbus watch --help) [usage]",
    "agent labeler": "'labeler' is not one of labeller,",
    "env king": "'king' is not one of cli,",
    "page": "[no_fedbus_here]",
    "up --cluster 2": "--cluster is 1, 3 or 5",
    "up --nats-port 99999": "less than or equal to 65535",
    "up --store /proc/none": "/proc/none: No such file or directory",
    "up --clients native": "'native' is not browser:N or native:N",
    "client": "say how many: --native N or --browser N",
    "client --native 1 --gateway localhost:8700": "'localhost:8700' is not like http://",
    "client --native 1 --engine ort": "there is no engine 'ort'; there is ort-training",
    "clients --gateway ftp://here": "'ftp://here' is not like http://",
    "token create --role king": "'king' is not one of watch,",
    "token create --role train --expires soon": "'soon' is not like 90s",
    "demo --clients native:1 --data none": "none",
    "demo --clients native:1 --users 1000 --images 1000": "images",
    "run start --users 0": "'--users'",
    "run start --name 'a b'": "'a b' cannot be a name",
    "run start --encoding int4": "unknown encoding 'int4'",
    "run start --strategy fedadm": "there is no strategy 'fedadm'",
    "run start --strategy-set server_rate=1": "server_rate: there is no such setting",
    "run start --quorum 2.5": "--quorum is a share up to 1",
    "run start --artifacts none": "[artifact_manifest_invalid]",
    "run start --config none.toml": "[run_file_invalid]",
    "record shop -o shop.jsonl --include everything": "--include is replay or all",
    "record shop -o shop.gz": "cannot be a recording (let its name end in .jsonl or .jsonl.gz) [recording_name]",
    "replay none.jsonl": "'none.jsonl' does not exist",
    "replay words.jsonl": "is no recording: it does not begin with the header of one (fedbus record",
    "replay empty.jsonl": "is no recording",
    "replay json.jsonl --agent labeler": "labeler is not one of",
    "replay json.jsonl": "is no recording",
    "data prepare none -o out": "none",
    "data labels match words.jsonl --classes json.jsonl -o out.json": "[labels_file_invalid]",
    "dlq retry": "say which: a sequence or --all",
    "gc --older-than 1": "greater than or equal to 600",
    "model export shop": "Missing option",
    "model export shop -o .": ". is not empty, and no earlier export lies there (choose a new folder",
    "model export shop -o words.jsonl": "words.jsonl is no folder",
    "evaluate --model nope --model nope --data none": "there is no model nope: no file and no folder has this name",
    "evaluate": "Missing option '--model'",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_answered_in_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"words.jsonl": "hello\n", "empty.jsonl": "", "json.jsonl": "{}\n"}.items():
        Path(name).write_text(text)
    monkeypatch.setattr(sys, "argv", ["fedbus", *shlex.split(command)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert said.count("\n") == 1, said
    assert re.fullmatch(r"fedbus: .*\S \[[a-z_]+\]\n", said), said
    assert MISTAKES[command] in said
    assert not (tmp_path / ".fedbus").exists()
