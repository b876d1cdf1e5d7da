"""Asks an OpenAI-compatible API about images: retries what may pass, and tells apart what does not."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import numpy as np
import openai
from numpy.typing import NDArray
from openai import AsyncOpenAI
from pydantic import BaseModel, BeforeValidator, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from agents.labeller.bounded import ReplyTooLongError, bounded_client
from agents.labeller.errors import ApiRefusedError, ApiUnavailableError
from agents.labeller.prompt import MalformedReply, Prompt
from agents.labeller.settings import LabellerSettings
from bus.process.logs import without_login
from bus.words.problems import what_is_wrong

MAX_RETRY_AFTER_S = 600.0
_MOST_TOKENS = 100_000_000
"""More than any request takes."""
_SAMPLE = 160
_FIRST_BACKOFF_S = 0.5
_SHORTEST_SECRET = 8
"""A shorter key is a word for a local server that takes any."""
_PASSING_STATUS = (408, 409, 429)
_FILTER_CODES = ("content_filter", "content_policy_violation", "invalid_image", "image_parse_error")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What the API said about some images: an answer for each, or why there is none; and the tokens it took.

    ``problem`` says in words why a reply cannot be read, with a sample; ``fewer_may_help`` that one about fewer images
    might be.
    """

    answers: tuple[str, ...] | None
    failure: Literal["", "refused", "failed"]
    prompt_tokens: int
    completion_tokens: int
    problem: str = ""
    fewer_may_help: bool = False


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


def _count(value: Any) -> int:
    """A number of tokens; whatever is none counts as not said."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0


_Tokens = Annotated[int, BeforeValidator(_count)]


class _Usage(BaseModel):
    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens = 0


class _Completion(BaseModel):
    """As much of a chat completion as we need: compatible servers differ in the rest."""

    choices: list[_Choice]
    usage: Annotated[_Usage, BeforeValidator(lambda usage: usage if isinstance(usage, dict) else {})] = _Usage()


class _NoReply(Exception):
    """What came is no chat completion, or did not come in time: a proxy on the way, or a connection that was cut."""


class LabelApi:
    """One model behind one client; at most ``concurrency`` requests are under way.

    Attributes:
        requests: how many were sent.
        under_way: how many of them wait for their answer.
    """

    def __init__(
        self, client: AsyncOpenAI, settings: LabellerSettings, *, model: str, prompt: Prompt, concurrency: int
    ) -> None:
        self._client = client
        self._settings = settings
        self._model = model
        self._prompt = prompt
        self._free = asyncio.Semaphore(concurrency)
        self._closed_until = 0.0
        self._stopped = False
        self.requests = 0
        self.under_way = 0

    def stop(self) -> None:
        """Tries nothing again from now on; what is under way may still be answered."""
        self._stopped = True

    async def ask(self, images: Sequence[NDArray[np.uint8]], *, admit: Callable[[], None] = lambda: None) -> Reply:
        """The reply about these images, uint8 [height, width, channels] each; ``admit`` may refuse when its turn comes.

        Rate limits, server errors, time-outs and lost connections are tried again, as late as ``Retry-After`` says;
        after a rate limit no other request goes out earlier either. A request may take ``request_timeout_s`` in all.

        Raises:
            ApiUnavailableError: it still did not answer at the last attempt.
            ApiRefusedError: it does not serve this key, model or request.
        """
        retrying = AsyncRetrying(
            stop=lambda state: self._stopped or state.attempt_number >= self._settings.attempts,
            wait=self._wait_s,
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        async with self._free:
            admit()
            body = await asyncio.to_thread(self._prompt.request, images)
            try:
                return await retrying(self._send, body, len(images))
            except (openai.APIError, _NoReply) as error:
                return self._give_up(error)

    async def _send(self, body: dict[str, object], images: int) -> Reply:
        # Again and again: another request may have been told to wait meanwhile.
        while (wait_s := self._closed_until - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait_s)
        self.requests += 1
        create = self._client.chat.completions.with_raw_response.create
        self.under_way += 1
        try:
            # Of the whole request: the client's own limit begins anew with each byte that trickles in.
            async with asyncio.timeout(self._settings.request_timeout_s):
                raw = await create(model=self._model, **body)  # type: ignore[call-overload]
        except ReplyTooLongError as error:
            raise _NoReply(str(error)) from None
        except TimeoutError:
            raise _NoReply(f"no whole answer within {self._settings.request_timeout_s:g} s") from None
        finally:
            self.under_way -= 1
        try:
            completion = _Completion.model_validate_json(raw.content)
        except ValidationError as error:
            raise _NoReply(f"the answer is no chat completion: {what_is_wrong(error)}") from None
        return self._reply(completion, images)

    def _reply(self, completion: _Completion, images: int) -> Reply:
        usage = completion.usage
        choice = completion.choices[0] if completion.choices else _Choice(message=_Message())
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return Reply(None, "refused", usage.prompt_tokens, usage.completion_tokens)
        try:
            answers = self._prompt.read(choice.message.content or "", images)
        except MalformedReply as error:
            cut = choice.finish_reason == "length"
            reason = f"{error}{', cut off at its limit of tokens' if cut else ''}"
            problem = f"{reason}: {self._line(repr((choice.message.content or '')[:_SAMPLE]))}"
            log.info("a reply about %d images cannot be read: %s", images, problem)
            return Reply(
                *(None, "failed", usage.prompt_tokens, usage.completion_tokens, problem, cut or error.incomplete)
            )
        return Reply(tuple(answers), "", usage.prompt_tokens, usage.completion_tokens)

    def _wait_s(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = _retry_after_s(error) if isinstance(error, openai.APIStatusError) else None
        longest = min(self._settings.max_backoff_s, _FIRST_BACKOFF_S * 2 ** (state.attempt_number - 1))
        wait_s = min(asked, MAX_RETRY_AFTER_S) if asked is not None else random.uniform(longest / 2, longest)
        if isinstance(error, openai.RateLimitError):
            self._closed_until = max(self._closed_until, time.monotonic() + wait_s)
        log.warning("attempt %d failed, next in %.1f s: %s", state.attempt_number, wait_s, self._said(error))
        return wait_s

    def _give_up(self, error: openai.APIError | _NoReply) -> Reply:
        """What an error that is not tried again means for the images, or for the whole run."""
        if isinstance(error, openai.BadRequestError) and (error.code or "").startswith(_FILTER_CODES):
            return Reply(None, "refused", 0, 0)
        if _may_pass(error):
            raise ApiUnavailableError(f"the label API does not answer: {self._said(error)}") from None
        raise ApiRefusedError(
            f"the label API refuses: {self._said(error)}",
            hint="check OPENAI_API_KEY, OPENAI_BASE_URL, quota and --label-model",
        ) from None

    def _said(self, error: BaseException | None) -> str:
        return self._line(str(error) if isinstance(error, _NoReply) else f"{type(error).__name__}: {error}")

    def _line(self, text: str) -> str:
        """Foreign text as one line; servers like to say the key that they refuse, and the line becomes an event."""
        text = without_login(" ".join(text.split()))
        for secret in _secrets(self._settings):
            text = text.replace(secret, "***")
        return text[:300]


@contextlib.asynccontextmanager
async def label_api(
    settings: LabellerSettings, *, model: str, prompt: Prompt, concurrency: int
) -> AsyncIterator[LabelApi]:
    """The API of the settings; its connections are closed at the end.

    Raises:
        ApiKeyMissingError: there is no key.
        ApiKeyUnusableError: it cannot be one.
    """
    async with AsyncOpenAI(
        api_key=settings.api_key(),
        base_url=settings.openai_base_url,
        timeout=settings.request_timeout_s,
        max_retries=0,
        http_client=bounded_client(settings.request_timeout_s),
    ) as client:
        yield LabelApi(client, settings, model=model, prompt=prompt, concurrency=concurrency)


def _secrets(settings: LabellerSettings) -> Iterator[str]:
    """What the API is told so that it lets us in, as it may say it again."""
    key, place = settings.openai_api_key, urlsplit(settings.openai_base_url or "")
    if key is not None and len(key.get_secret_value()) >= _SHORTEST_SECRET:
        yield key.get_secret_value()
    if place.password:
        login = f"{unquote(place.username or '')}:{unquote(place.password)}"
        yield from (base64.b64encode(login.encode()).decode(), unquote(place.password), place.password)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, openai.RateLimitError):
        return error.code != "insufficient_quota"
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in _PASSING_STATUS
    return isinstance(error, openai.APIConnectionError | _NoReply)


def _retry_after_s(error: openai.APIStatusError) -> float | None:
    """Seconds that the server wants us to wait: ``retry-after-ms``, or ``Retry-After`` in seconds or as a date."""
    headers = error.response.headers
    with contextlib.suppress(ValueError):
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
    after = headers.get("retry-after")
    if after is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(after))
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    return None
