"""A wrong setting ends what reads it with one line that names the variable, also where there is a broker."""

from __future__ import annotations

import re
import sys

from agents.runtime.connection import read_connection
from tests.commands.conftest import Shell

WRONG = {"FEDBUS_GATEWAY_ORIGINS": "http://x"}
LINE = r'FEDBUS_GATEWAY_ORIGINS: it is no JSON list; write \["one", "two"\]'


async def test_a_wrong_setting_is_one_line_and_a_misspelled_one_a_warning(shell: Shell) -> None:
    await (await shell.start("broker", "--nats-port", "0")).says("NATS on")
    known = read_connection(shell.folder / ".fedbus")
    assert known is not None
    by_hand = await shell.start_program(sys.executable, "-m", "agents.gateway", **known.env("gateway"), **WRONG)
    for one in (await shell.start("agent", "gateway", **WRONG), by_hand):
        assert await one.ended(within_s=60) == 1
        assert re.search(rf"gateway    ERROR: {LINE} \[settings_invalid\] .*$", one.said.splitlines()[-1])
        assert "Traceback" not in one.said
    said = (await shell.run("up", "--store", "st", "--port", "0", "--nats-port", "0", code=1, **WRONG)).splitlines()
    assert re.fullmatch(rf"fedbus: {LINE} \(.*\) \[settings_invalid\]", said[-1])
    assert len(said) == 1
    said = (await shell.run("dlq", "list", FEDBUS_LABELER_CACHE="x")).splitlines()
    assert said[0] == "fedbus: FEDBUS_LABELER_CACHE is not a setting; did you mean FEDBUS_LABELLER_CACHE?"
    agent = await shell.start("agent", "evaluator", FEDBUS_LABELER_CACHE="x")
    await agent.says("connected; ready")
    assert agent.said.count("did you mean FEDBUS_LABELLER_CACHE?") == 1
