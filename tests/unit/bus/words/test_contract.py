import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.words.events import RoundFailed
from bus.errors import MalformedEventError, MalformedSubjectError
from bus.words.envelope import new_event, parse_event
from bus.words.subjects import checked, event_subject, parse_event_subject

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)


@given(run=NAMES, round_=st.integers(0, 1_000_000), reason=st.text(max_size=500))
def test_an_event_survives_the_wire(run: str, round_: int, reason: str) -> None:
    event = new_event(RoundFailed(run=run, round=round_, reason=reason), source="test")
    assert parse_event(event.to_json()) == event
    parts = parse_event_subject(event_subject(event.data))
    assert (parts.run, parts.type, parts.rest) == (run, "round.failed", (str(round_),))


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(), lambda x: st.lists(x)).map(lambda x: json.dumps(x).encode())
)
def test_noise_is_never_an_event(body: bytes) -> None:
    with pytest.raises(MalformedEventError):
        parse_event(body)


@given(st.text(max_size=70))
def test_only_safe_tokens_pass(token: str) -> None:
    safe = token.isascii() and 0 < len(token) <= 64 and all(c.isalnum() or c in "-_" for c in token)
    if safe and token[0] not in "-_":
        assert checked(token) == token
    else:
        with pytest.raises(MalformedSubjectError):
            checked(token)
