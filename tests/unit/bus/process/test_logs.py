import json
import logging

import pytest

from bus.process.logs import configure, escaped, without_login


@pytest.fixture(autouse=True)
def _keep_root_logger() -> object:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_has_role_message_and_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure("aggregator")
    logging.getLogger("x").info("closed with %d", 3, extra={"run": "r1", "round": 2})
    line = capsys.readouterr().err
    assert line[2] == line[5] == ":"
    assert line[8:] == " aggregator closed with 3  run=r1  round=2\n"


def test_foreign_text_cannot_forge_lines_or_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    configure("gateway")
    logging.getLogger("x").warning(
        "client says %s", "a\n12:00:00 gateway fine\x1b[2J\x7f\x9b\u2028\u202e\u2066", extra={"user": "u\r"}
    )
    out = capsys.readouterr().err
    assert out.count("\n") == 1
    assert "WARNING: client says a\\n12:00:00 gateway fine\\x1b[2J\\x7f\\x9b\\u2028\\u202e\\u2066  user=u\\r" in out


def test_json_lines_carry_context_and_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure("labeller", json=True)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("x").exception("failed\n", extra={"run": "r", "trace": "t"})
    fields = json.loads(capsys.readouterr().err)
    assert (fields["role"], fields["level"], fields["message"], fields["run"], fields["trace"]) == (
        "labeller",
        "error",
        "failed\n",
        "r",
        "t",
    )
    assert "ValueError: broken" in fields["traceback"]


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure("one")
    configure("two")
    logging.getLogger("x").info("hello")
    assert capsys.readouterr().err.count("hello") == 1


def test_ordinary_text_is_left_alone() -> None:
    assert escaped("Größe 3 × 4 — “ok”") == "Größe 3 × 4 — “ok”"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://host:4222", "nats://host:4222"),
        ("nats://me:p@ss@host:4222", "nats://***@host:4222"),
        ("tls://t0ken@[::1]:4222", "tls://***@[::1]:4222"),
        ("nats://me:one@a:1,nats://me:two@b:2", "nats://***@a:1,nats://***@b:2"),
        ("http://host/#token=abc&x=1", "http://host/#token=***&x=1"),
        ("ws://host/#token=abc/ws", "ws://host/#token=***/ws"),
        ("no URL at http://me:p@, sorry: a@b", "no URL at http://***@, sorry: a@b"),
    ],
)
def test_an_address_is_shown_without_its_login(url: str, shown: str) -> None:
    assert without_login(url) == shown
