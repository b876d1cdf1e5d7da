"""The provider ``openai`` through the real client, against a server on loopback that also misbehaves."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from time import monotonic, time

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import SecretStr

from agents.core.labels.labels import UserLabels
from agents.labeller.errors import (
    ApiKeyMissingError,
    ApiRefusedError,
    ApiUnavailableError,
    CostLimitError,
    UnreadableRepliesError,
)
from agents.labeller.openai_provider import OpenAIProvider, openai_provider
from agents.labeller.settings import LabellerSettings
from agents.runtime.tasks import together
from agents.words.run_config import LabellingSpec, UserShard
from bus.words.values import Ref
from tests.builders import ANY_REF, ref_of
from tests.conftest import wait_for
from tests.unit.agents.labeller.label_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    WRAPPERS,
    LabelServer,
    label_server,
)

CLASSES = ("tabby, tabby cat", "beagle", "goldfish", "school bus")


@pytest.fixture
def server() -> Iterator[LabelServer]:
    with label_server(*CLASSES) as running:
        yield running


def images(*pixels: int) -> NDArray[np.uint8]:
    """Images [n, 4, 4, 3] that begin with these pixels."""
    made = np.zeros((len(pixels), 4, 4, 3), np.uint8)
    made[:, 0, 0, 0] = pixels
    return made


class Labelling:
    """Providers that share one cache folder; each user's images are given by name."""

    def __init__(self, server: LabelServer, folder: Path, *, classes: tuple[str, ...] = CLASSES) -> None:
        self.classes = classes
        self.settings = LabellerSettings(
            cache=folder / "sub" / "labels.sqlite",
            openai_api_key=SecretStr("key-1"),
            openai_base_url=server.url,
            attempts=4,
            max_backoff_s=0.02,
            request_timeout_s=5,
        )

    @asynccontextmanager
    async def provider(self, pixels: NDArray[np.uint8], **spec: object) -> AsyncIterator[OpenAIProvider]:
        labelling = LabellingSpec.model_validate({"provider": "openai", "images_per_request": 2, **spec})

        async def load(_: object) -> NDArray[np.uint8]:
            return pixels

        async with openai_provider(self.classes, labelling, self.settings, load) as provider:
            yield provider

    async def label(self, *pixels: int, **spec: object) -> UserLabels:
        async with self.provider(images(*pixels), **spec) as provider:
            return await provider.label(UserShard(user="u", shard=ANY_REF))


@pytest.fixture
def labelling(server: LabelServer, tmp_path: Path) -> Labelling:
    return Labelling(server, tmp_path)


async def test_images_are_asked_about_together_and_get_the_classes_answered(labelling: Labelling, server: LabelServer):
    said = await labelling.label(0, 1, 2, 3, 4, concurrency=1)
    assert said.labels == (0, 1, 2, 3, 0)
    assert said.dropped == ()
    assert [len(request["messages"][1]["content"]) // 2 for request in server.requests] == [2, 2, 1]
    assert (said.prompt_tokens, said.completion_tokens) == (3 * PROMPT_TOKENS, 3 * COMPLETION_TOKENS)
    assert server.headers[0]["authorization"] == "Bearer key-1"


async def test_the_request_restricts_the_answer_to_the_classes(labelling: Labelling, server: LabelServer):
    await labelling.label(0, 1, detail="high", model="gpt-4o-mini")
    request = server.requests[0]
    assert request["model"] == "gpt-4o-mini"
    schema = request["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["required"] == ["image_1", "image_2"]
    assert schema["schema"]["$defs"]["class"]["enum"] == [*CLASSES, "I don't know"]
    assert request["messages"][1]["content"][1]["image_url"]["detail"] == "high"


async def test_a_thousand_classes_stand_in_the_prompt_and_answers_are_checked(server: LabelServer, tmp_path: Path):
    classes = tuple(f"kind-{index:04}x" for index in range(1000))
    server.classes = classes
    server.wrong = {1: "kind-9999x", 2: "something else entirely"}
    said = await Labelling(server, tmp_path, classes=classes).label(0, 1, 2, 3)
    assert "enum" not in server.requests[0]["response_format"]["json_schema"]["schema"]["$defs"]["class"]
    assert "kind-0999x" in server.requests[0]["messages"][0]["content"]
    assert said.labels[0] == 0
    assert said.labels[3] == 3
    assert said.labels[2] is None


async def test_wrong_and_unknown_labels_drop_their_image_with_the_reason(labelling: Labelling, server: LabelServer):
    server.wrong = {1: "helicopter", 2: "I don't know", 3: "Tabby", 5: "beagle or goldfish"}
    said = await labelling.label(0, 1, 2, 3, 5)
    assert said.labels == (0, None, None, 0, None)
    assert [(one.index, one.reason, one.answer) for one in said.dropped] == [
        (1, "not_a_class", "helicopter"),
        (2, "unknown", "I don't know"),
        (4, "ambiguous", "beagle or goldfish"),
    ]


@pytest.mark.parametrize("trouble", ["429 0.05", "429", "500", "hang", "drip", "cut", "half", "html"])
async def test_trouble_that_passes_is_tried_again(labelling: Labelling, server: LabelServer, trouble: str):
    labelling.settings = labelling.settings.model_copy(update={"request_timeout_s": 0.3})
    server.script.extend([trouble, trouble])
    said = await labelling.label(0, 1)
    assert said.labels == (0, 1)
    assert len(server.requests) == 3


async def test_retry_after_is_honoured(labelling: Labelling, server: LabelServer):
    server.script.append("429 0.4")
    said = await labelling.label(0)
    assert said.labels == (0,)
    assert server.times[1] - server.times[0] >= 0.35


async def test_other_requests_wait_too_when_one_is_told_to(labelling: Labelling, server: LabelServer):
    server.script.extend(["429 0.4", "429 0.4"])
    await labelling.label(*range(8), concurrency=2)
    assert min(server.times[2:]) - max(server.times[:2]) >= 0.3


async def test_retry_after_may_be_a_date(labelling: Labelling, server: LabelServer):
    server.script.append(f"429 {formatdate(time() + 1.99, usegmt=True)}")
    begin = monotonic()
    await labelling.label(0)
    assert monotonic() - begin > 0.5


async def test_an_api_that_stays_away_is_reported_and_what_was_answered_is_kept(
    labelling: Labelling, server: LabelServer
):
    server.script.extend(["answer", *["500"] * 4])
    with pytest.raises(ApiUnavailableError, match="oops"):
        await labelling.label(0, 1, 2, 3, concurrency=1)
    assert len(server.requests) == 5
    server.asked.clear()
    assert (await labelling.label(0, 1, 2, 3)).labels == (0, 1, 2, 3)
    assert sorted(server.asked) == [2, 3]


@pytest.mark.parametrize("shards", [[(0, 1, 2, 3)], [(0, 1), (2, 3)]])
async def test_an_answer_that_is_under_way_when_another_request_is_refused_is_kept(
    labelling: Labelling, server: LabelServer, shards: list[tuple[int, ...]]
):
    users = {ref_of(bytes(pixels)): images(*pixels) for pixels in shards}

    async def load(shard: Ref) -> NDArray[np.uint8]:
        return users[shard]

    server.script.extend(["late", "401"])
    spec = LabellingSpec(provider="openai", images_per_request=2, concurrency=2)
    with pytest.raises(ApiRefusedError):
        async with openai_provider(labelling.classes, spec, labelling.settings, load) as provider:
            await together(provider.label(UserShard(user="u", shard=shard)) for shard in users)
    late = server.asked[:2]
    assert len(server.requests) == 2
    server.asked.clear()
    assert (await labelling.label(0, 1, 2, 3)).labels == (0, 1, 2, 3)
    assert sorted([*server.asked, *late]) == [0, 1, 2, 3]


@pytest.mark.parametrize("trouble", ["401", "quota"])
async def test_an_api_that_refuses_the_account_is_not_asked_again(
    labelling: Labelling, server: LabelServer, trouble: str
):
    server.script.append(trouble)
    with pytest.raises(ApiRefusedError) as raised:
        await labelling.label(0)
    assert len(server.requests) == 1
    assert "OPENAI_API_KEY" in raised.value.hint


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS.keys() - {"prose"}))
async def test_an_answer_is_found_in_whatever_it_is_wrapped(labelling: Labelling, server: LabelServer, wrapper: str):
    server.always = wrapper
    server.wrong = {2: "I don't know"}
    said = await labelling.label(0, 1, 2, 3)
    assert said.labels == (0, 1, None, 3)
    assert len(server.requests) == 2


async def test_half_a_character_in_an_answer_spoils_nothing(labelling: Labelling, server: LabelServer):
    server.wrong = {2: "\ud800"}
    said = await labelling.label(0, 1, 2, 3)
    assert said.labels == (0, 1, None, 3)


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_when_no_reply_can_be_read_it_stops_early_with_the_reason_and_a_sample(
    labelling: Labelling, server: LabelServer, concurrency: int
):
    server.always = "prose"
    with pytest.raises(UnreadableRepliesError, match="it is no JSON") as raised:
        await labelling.label(*range(40), images_per_request=5, concurrency=concurrency)
    assert ": 'I see " in raised.value.message
    assert len(server.requests) <= 12


async def test_when_no_reply_is_whole_not_even_about_one_image_it_stops(labelling: Labelling, server: LabelServer):
    server.always = "truncated"
    with pytest.raises(UnreadableRepliesError, match="cut off at its limit of tokens"):
        await labelling.label(*range(40), images_per_request=5)
    assert len(server.requests) <= 24


async def test_replies_that_are_too_long_for_many_images_are_asked_for_in_halves(
    labelling: Labelling, server: LabelServer
):
    server.script.extend(["truncated"] * 4)
    said = await labelling.label(*range(8), concurrency=4, images_per_request=2)
    assert None not in said.labels


async def test_one_image_that_no_reply_can_be_read_about_does_not_stop_the_others(
    labelling: Labelling, server: LabelServer
):
    # Of four, of the first two, and of the first alone as often as it is tried.
    server.script.extend(["prose"] * (2 + labelling.settings.attempts))
    said = await labelling.label(0, 1, 2, 3, images_per_request=4, concurrency=1)
    assert said.labels == (None, 1, 2, 3)


async def test_a_server_that_drips_is_given_up_after_the_time_of_a_whole_request(
    labelling: Labelling, server: LabelServer
):
    labelling.settings = labelling.settings.model_copy(update={"request_timeout_s": 0.4, "attempts": 2})
    server.always = "drip"
    begin = monotonic()
    with pytest.raises(ApiUnavailableError, match=r"no whole answer within 0.4 s"):
        await labelling.label(0)
    assert monotonic() - begin < 5
    assert len(server.requests) == 2


@pytest.mark.parametrize("action", ["flood", "bomb"])
async def test_a_server_that_sends_without_an_end_is_cut_off_before_it_fills_the_memory(
    labelling: Labelling, server: LabelServer, action: str
):
    labelling.settings = labelling.settings.model_copy(update={"attempts": 2})
    server.always = action
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ApiUnavailableError, match=r"the answer has more than \d+ bytes"):
        await labelling.label(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "usage",
    [
        *("null", "3", "[]", '"many"', "{}", '{"prompt_tokens": -5, "completion_tokens": "x"}'),
        *('{"prompt_tokens": 1e400, "completion_tokens": true}', '{"prompt_tokens": 1' + "0" * 30 + "}"),
    ],
)
async def test_a_nonsensical_count_of_tokens_is_no_failure(labelling: Labelling, server: LabelServer, usage: str):
    server.always = f"usage{usage}"
    said = await labelling.label(0, 1)
    assert said.labels == (0, 1)
    assert (said.prompt_tokens, said.completion_tokens) == (0, 0)
    assert len(server.requests) == 1


async def test_a_server_that_does_not_say_its_tokens_costs_what_was_expected(labelling: Labelling, server: LabelServer):
    labelling.settings = labelling.settings.model_copy(update={"max_cost": 0.0025})
    server.always = "usagenull"
    with pytest.raises(CostLimitError, match="spent"):
        await labelling.label(*range(40), concurrency=1, images_per_request=2)
    assert 0 < len(server.requests) < 10


async def test_a_name_that_two_classes_share_is_asked_for_once_and_drops_its_image_with_both(
    server: LabelServer, tmp_path: Path
):
    server.classes = ("crane", "lion", "crane")
    said = await Labelling(server, tmp_path, classes=("crane (0)", "lion", "crane (2)")).label(0, 1, 2)
    assert said.labels == (None, 1, None)
    assert [(one.reason, one.answer) for one in said.dropped] == [("ambiguous", "crane")] * 2
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["$defs"]["class"]["enum"] == ["crane", "lion", "I don't know"]
    assert server.requests[0]["messages"][0]["content"].splitlines()[-2:] == ["crane", "lion"]


@pytest.mark.parametrize("trouble", ["truncated", "missing", "empty"])
async def test_an_unreadable_reply_is_asked_again_in_halves(labelling: Labelling, server: LabelServer, trouble: str):
    server.script.append(trouble)
    said = await labelling.label(0, 1)
    assert said.labels == (0, 1)
    assert said.prompt_tokens == 3 * PROMPT_TOKENS
    assert [len(request["messages"][1]["content"]) // 2 for request in server.requests] == [2, 1, 1]


async def test_an_image_whose_replies_stay_unreadable_is_dropped_and_asked_about_another_time(
    labelling: Labelling, server: LabelServer
):
    server.script.extend(["truncated"] * 4)
    said = await labelling.label(1)
    assert said.labels == (None,)
    assert said.dropped[0].reason == "failed"
    assert (await labelling.label(1)).labels == (1,)


async def test_a_refused_image_does_not_spoil_the_others_of_its_request(labelling: Labelling, server: LabelServer):
    server.refused_pixels = {2}
    said = await labelling.label(0, 1, 2, 3, images_per_request=4)
    assert said.labels == (0, 1, None, 3)
    assert said.dropped[0].reason == "refused"


async def test_a_request_that_a_content_filter_refuses_drops_its_image(labelling: Labelling, server: LabelServer):
    server.script.append("filter")
    said = await labelling.label(1)
    assert [one.reason for one in said.dropped] == ["refused"]


async def test_nothing_is_asked_twice_and_the_same_labels_come_back(labelling: Labelling, server: LabelServer):
    server.refused_pixels = {2}
    first = await labelling.label(0, 1, 2, 1)
    count = len(server.requests)
    assert sorted(set(server.asked)) == [0, 1, 2]
    assert await labelling.label(0, 1, 2, 1) == first
    assert len(server.requests) == count


async def test_another_prompt_or_model_asks_again(labelling: Labelling, server: LabelServer):
    await labelling.label(0)
    await labelling.label(0, model="gpt-4o-mini")
    await labelling.label(0, detail="high")
    assert len(server.requests) == 3


async def test_users_with_the_same_image_ask_once(labelling: Labelling, server: LabelServer):
    server.slow_s = 0.05
    async with labelling.provider(images(3)) as provider:
        users = [provider.label(UserShard(user=name, shard=ANY_REF)) for name in ("a", "b", "c")]
        said = await asyncio.gather(*users)
    assert [one.labels for one in said] == [(3,)] * 3
    assert len(server.requests) == 1


async def test_an_interrupted_labelling_goes_on_where_it_stopped(labelling: Labelling, server: LabelServer):
    server.script.extend(["answer", "answer", "hang"])
    task = asyncio.create_task(labelling.label(*range(8), concurrency=1))
    await wait_for(lambda: len(server.requests) == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.asked.clear()
    said = await labelling.label(*range(8))
    assert said.labels == (0, 1, 2, 3, 0, 1, 2, 3)
    assert sorted(server.asked) == [4, 5, 6, 7]


async def test_no_more_requests_run_at_once_than_allowed(labelling: Labelling, server: LabelServer):
    server.slow_s = 0.03
    await labelling.label(*range(20), images_per_request=1, concurrency=3)
    assert server.busiest == 3


async def test_without_a_key_the_error_says_what_to_set(labelling: Labelling):
    labelling.settings = labelling.settings.model_copy(update={"openai_api_key": None})
    with pytest.raises(ApiKeyMissingError) as raised:
        await labelling.label(0)
    assert "OPENAI_API_KEY" in raised.value.hint


async def test_a_cost_limit_refuses_before_anything_is_sent(labelling: Labelling, server: LabelServer):
    labelling.settings = labelling.settings.model_copy(update={"max_cost": 0.001})
    pictures = images(*range(200))
    async with labelling.provider(pictures) as provider:
        with pytest.raises(CostLimitError, match="200 images"):
            await provider.check_cost([UserShard(user="u", shard=ANY_REF)])
    assert server.requests == []


async def test_a_cost_limit_ends_a_labelling_that_costs_more_than_estimated(labelling: Labelling, server: LabelServer):
    # A request is estimated at about 0.001 dollars; a refused one is paid for and asked again in halves.
    server.refused_pixels = {0, 1, 2, 3}
    labelling.settings = labelling.settings.model_copy(update={"max_cost": 0.0015})
    with pytest.raises(CostLimitError, match="spent"):
        await labelling.label(0, 1, 2, 3, concurrency=1, images_per_request=2)
    assert 0 < len(server.requests) < 6


async def test_a_model_without_a_known_price_is_refused_under_a_cost_limit(labelling: Labelling):
    labelling.settings = labelling.settings.model_copy(update={"max_cost": 1.0})
    async with labelling.provider(images(0), model="llava") as provider:
        with pytest.raises(CostLimitError, match="llava"):
            await provider.check_cost([UserShard(user="u", shard=ANY_REF)])
