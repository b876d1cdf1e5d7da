"""An agent that begins after the past of the stream comes to what it would have come to from the first event on."""

from __future__ import annotations

from collections import deque
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from agents.core.exchange.runs import Runs
from agents.core.rounds.plan import RunState
from agents.core.rounds.settling import SETTLE_EVERY, Settling
from agents.runtime.past import past_of
from agents.words.events import MAX_OPEN_RUNS, RunFinished, RunsSettled, RunStarted
from bus.words.envelope import Stored, new_event
from bus.words.payload import Payload
from tests.builders import START, config, labelled, planned, ref_of, run_started

NAMES = ("a", "b", "c")
STARTED = run_started(config(users=2))


def said(kind: str, run: str) -> Payload:
    data: Payload = {
        "started": STARTED,
        "labelled": labelled("u0"),
        "planned": planned(2, 2),
        "finished": RunFinished(run="x", status="completed", rounds=1),
    }[kind]
    return data.model_copy(update={"run": run})


# On each subject there is one event that counts.
streams = st.lists(
    st.tuples(st.sampled_from(("started", "labelled", "planned", "finished")), st.sampled_from(NAMES)), unique=True
)


def stored_all(stream: list[tuple[str, str]]) -> list[Stored]:
    # Every third sequence, as where other messages were malformed.
    return [
        Stored(3 * at, START + timedelta(seconds=at), new_event(said(kind, run), source="test"))
        for at, (kind, run) in enumerate(stream, start=1)
    ]


def dispatched(events: list[Stored]) -> dict[str, RunState]:
    """The open runs as the dispatcher and the aggregator keep them."""
    runs: dict[str, RunState] = {}
    for stored in events:
        data = stored.event.data
        if isinstance(data, RunStarted) and data.run not in runs:
            runs[data.run] = RunState(data)
        if data.run in runs:
            runs[data.run].fold(stored)
            if isinstance(data, RunFinished):
                del runs[data.run]
    return runs


@given(streams, st.data())
def test_open_runs_are_the_same_from_the_end_of_the_past_on(stream: list[tuple[str, str]], data: st.DataObject) -> None:
    events = stored_all(stream)
    # The past may have been read a while ago, or from a replica that is behind.
    seen = data.draw(st.integers(0, len(events)))
    past = past_of(one for one in events[:seen] if isinstance(one.event.data, RunStarted | RunFinished))
    rest = [one for one in events if one.sequence > past.after]
    assert dispatched(rest) == dispatched(events)
    whole, short = Runs(), Runs()
    for one in events:
        whole.fold(one)
    short.begin(past.after)
    # What is over is recalled while what is open is read already.
    recalls, folds = deque(past.runs), deque(rest)
    while recalls or folds:
        if recalls and (not folds or data.draw(st.booleans())):
            short.recall(recalls.popleft())
        else:
            short.fold(folds.popleft())
    assert not short.knows_all
    short.recalled()
    assert short.listing() == whole.listing()
    digests = [STARTED.dataset.sha256, STARTED.base_model.sha256]
    assert [short.is_secret(one) for one in digests] == [whole.is_secret(one) for one in digests]
    begun = set()
    for one in events:
        run = one.event.data.run
        begun |= {run} if isinstance(one.event.data, RunStarted) else set()
        # Nothing that comes before the start of its run counts.
        if run in begun:
            old, new = (runs.is_over((run, 1, "u0"), one.sequence) for runs in (whole, short))
            assert (old is None) == (new is None)
    if events and events[-1].sequence >= past.after:
        assert short.sequence == whole.sequence


def test_what_no_open_run_names_is_secret_until_everything_is_recalled() -> None:
    runs = Runs()
    runs.begin(10)
    other = ref_of(b"other").sha256
    runs.fold(Stored(11, START, new_event(STARTED, source="test")))
    assert runs.is_secret(STARTED.base_model.sha256) is False
    assert runs.is_secret(STARTED.dataset.sha256) is True
    assert runs.is_secret(other) is None
    runs.need([other])
    assert runs.is_secret(other) is False
    runs.recalled()
    assert runs.is_secret(ref_of(b"nobody's").sha256) is False
    assert runs.is_secret(STARTED.dataset.sha256) is True


def test_a_task_of_a_run_that_was_over_before_the_start_is_over_and_a_later_one_not_known_yet_is_not() -> None:
    runs = Runs()
    runs.begin(10)
    assert runs.is_over(("a", 1, "u0"), 10) == "the run is over"
    assert runs.is_over(("a", 1, "u0"), 11) is None
    runs.fold(Stored(12, START, new_event(said("finished", "a"), source="test")))
    assert runs.is_over(("a", 1, "u0"), 11) == "the run is completed"


@given(streams, st.data())
def test_what_came_since_somebody_said_what_is_open_is_enough(
    stream: list[tuple[str, str]], data: st.DataObject
) -> None:
    events = stored_all(stream)
    told = data.draw(st.integers(0, len(events)))
    settling = Settling(events[:told])
    # As if it were said at every end.
    settling._ended = SETTLE_EVERY
    end = Stored(3 * told + 1, START, new_event(said("finished", "nobody"), source="test"))
    settling.fold(end)
    assert settling.due is not None
    ends = [one for one in events if isinstance(one.event.data, RunStarted | RunFinished)]
    whole = past_of(ends)
    past = past_of((one for one in ends if one.sequence > end.sequence), settling.due)
    assert past.after == max(whole.after, 0) or whole.after < past.after <= end.sequence
    assert dispatched([one for one in events if one.sequence > past.after]) == dispatched(events)


def test_what_is_open_is_said_after_so_many_ends_and_not_one_sooner_nor_while_too_many_are_open() -> None:
    settling = Settling()
    for at in range(1, SETTLE_EVERY + 1):
        assert settling.due is None
        settling.fold(Stored(at, START, new_event(said("finished", f"r{at}"), source="test")))
    assert settling.due == RunsSettled(run=f"r{SETTLE_EVERY}", sequence=SETTLE_EVERY)
    settling.fold(Stored(SETTLE_EVERY + 1, START, new_event(settling.due, source="test")))
    assert settling.due is None
    full = Settling(
        Stored(at, START, new_event(said("started", f"o{at}"), source="test")) for at in range(1, MAX_OPEN_RUNS + 2)
    )
    for at in range(1, SETTLE_EVERY + 1):
        full.fold(Stored(1_000 + at, START, new_event(said("finished", f"r{at}"), source="test")))
    assert full.due is None
    full.fold(Stored(2_000, START, new_event(said("finished", "o1"), source="test")))
    assert full.due is not None
    assert len(full.due.open) == MAX_OPEN_RUNS


def test_a_stream_of_runs_that_are_over_need_not_be_read_again() -> None:
    events = stored_all([(kind, run) for run in NAMES for kind in ("started", "labelled", "planned", "finished")])
    past = past_of(one for one in events if isinstance(one.event.data, RunStarted | RunFinished))
    assert past.after == events[-1].sequence
    assert len(past.runs) == 6


def test_nothing_is_past_while_the_first_run_is_open_nor_in_an_empty_stream() -> None:
    events = stored_all([("started", "a"), ("started", "b"), ("finished", "b")])
    assert past_of(events).after == events[0].sequence - 1
    assert past_of([]).after == 0
