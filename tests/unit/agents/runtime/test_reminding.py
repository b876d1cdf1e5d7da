"""Why something is waited for is said at once when it is news, and every ten seconds while it stays so."""

from __future__ import annotations

from agents.runtime.reminding import REMIND_S, Reminder


def test_reasons_that_take_turns_are_said_once_each_and_then_every_ten_seconds() -> None:
    now = 100.0
    said: list[tuple[float, str]] = []
    reminder = Reminder(lambda line: said.append((now - 100, line)), lambda: now)
    for step in range(45):
        now = 100.0 + step / 2
        reminder.waits(("this broker is away", "that broker is away")[step % 2])
    assert [at for at, _ in said] == [0, 0.5, 0.5 + REMIND_S, 0.5 + 2 * REMIND_S]
    assert said[0][1] != said[1][1]


def test_a_reason_is_news_again_after_what_was_waited_for_has_come() -> None:
    said: list[str] = []
    reminder = Reminder(said.append, lambda: 0.0)
    for _ in range(2):
        reminder.waits("away")
        reminder.waits("away")
        reminder.over()
    assert said == ["away", "away"]
