"""What is declared of the words of federated learning is what brokers, recordings and other programs know."""

from __future__ import annotations

from agents.words.__main__ import PATH, rendered
from bus.broker.permissions import may_publish
from bus.words.payload import live_words, payloads, roles
from bus.words.subjects import address, event_subject, parse_event_subject
from tests.builders import subject_example

ADDRESSES = {
    "ev.{run}.run.started",
    "ev.{run}.images.labelled.{user}",
    "ev.{run}.round.started.{round}",
    "ev.{run}.round.planned.{round}",
    "ev.{run}.task.assigned.{round}.{user}",
    "ev.{run}.update.submitted.{round}.{user}",
    "ev.{run}.update.rejected.{round}.{user}.{attempt}",
    "ev.{run}.round.extended.{round}.{extension}",
    "ev.{run}.round.closed.{round}",
    "ev.{run}.round.failed.{round}",
    "ev.{run}.model.published.{round}",
    "ev.{run}.model.evaluated.{round}",
    "ev.{run}.run.finished",
    "progress.{run}.{round}.{user}",
    "hb.{role}.{id}",
}


def test_the_document_in_docs_is_up_to_date() -> None:
    assert PATH.read_text() == rendered(), "run `python -m agents.words`"


def test_everything_is_said_where_it_always_was() -> None:
    assert {address(word) for word in (*payloads(), *live_words())} >= ADDRESSES


def test_the_subject_of_an_event_reads_back() -> None:
    for payload in payloads():
        example = subject_example(payload)
        parts = parse_event_subject(event_subject(example))
        assert (parts.run, parts.type) == (example.run, payload.TYPE)


def test_a_role_beats_in_its_own_name_only_and_the_gateway_alone_reports_progress() -> None:
    for role in roles():
        allowed = may_publish(role)
        assert [one for one in allowed if one.startswith("hb.")] == [f"hb.{role}.>"]
        assert ("progress.>" in allowed) == (role == "gateway")
