"""A chat-completions server on loopback that labels images by their first pixel, and misbehaves when told to."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

PROMPT_TOKENS, COMPLETION_TOKENS = 101, 13


WRAPPERS: dict[str, Callable[[dict[str, str]], str]] = {
    "fence": lambda answers: f"```json\n{json.dumps(answers, indent=2)}\n```",
    "words": lambda answers: f'Of {{course}} [1], a 5" list: {json.dumps(answers)} - anything else?',
    "thought": lambda answers: f'<think>{{"image_1": 3}} or so</think>{json.dumps(answers)}',
    "object": lambda answers: json.dumps({"result": {"labels": answers}, "model": "x"}),
    "objects": lambda answers: json.dumps([{key: value} for key, value in answers.items()]),
    "list": lambda answers: json.dumps({"labels": list(answers.values())}),
    "inner": lambda answers: json.dumps({key: {"class": value} for key, value in answers.items()}),
    "beside": lambda answers: json.dumps({key: {"class": value, "sure": "very"} for key, value in answers.items()}),
    "records": lambda answers: json.dumps({"all": [{"image": key, "label": value} for key, value in answers.items()]}),
    "capitals": lambda answers: json.dumps({key.title().replace("_", " "): value for key, value in answers.items()}),
    "lines": lambda answers: "\n".join(json.dumps({key: [value]}) for key, value in answers.items()),
    "twice": lambda answers: json.dumps(json.dumps(answers)),
    "prose": lambda answers: f"I see {' and '.join(answers.values())}.",
}
"""How models dress their answers up; ``prose`` is none that can be read."""


@dataclass
class LabelServer:
    """``script`` holds what to do with the next requests (see ``_Handler``), ``always`` what to do after it."""

    classes: tuple[str, ...]
    url: str = ""
    script: deque[str] = field(default_factory=deque)
    always: str = "answer"
    refused_pixels: set[int] = field(default_factory=set)
    wrong: dict[int, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    busy: int = 0
    busiest: int = 0
    slow_s: float = 0.0
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, pixel: int) -> str:
        return self.wrong.get(pixel, self.classes[pixel % len(self.classes)])


@contextmanager
def label_server(*classes: str) -> Iterator[LabelServer]:
    state = LabelServer(classes)

    class Handler(_Handler):
        server_state = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    server_state: LabelServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        pixels = [
            _first_pixel(part["image_url"]["url"]) for part in body["messages"][1]["content"] if "image_url" in part
        ]
        with state.lock:
            state.requests.append(body)
            state.times.append(time.monotonic())
            state.headers.append({key.lower(): value for key, value in self.headers.items()})
            state.asked += pixels
            state.busy += 1
            state.busiest = max(state.busiest, state.busy)
            action = state.script.popleft() if state.script else state.always
        try:
            if state.slow_s:
                time.sleep(state.slow_s)
            self._do(action, pixels)
        finally:
            with state.lock:
                state.busy -= 1

    def _do(self, action: str, pixels: list[int]) -> None:
        state = self.server_state
        answers = {f"image_{number}": state.answer(pixel) for number, pixel in enumerate(pixels, start=1)}
        text = json.dumps(answers)
        if action.startswith("429"):
            _, _, after = action.partition(" ")
            self._send(429, _error("slow down", "rate_limit_exceeded"), {"Retry-After": after} if after else {})
        elif action == "quota":
            self._send(429, _error("no money left", "insufficient_quota"))
        elif action == "500":
            self._send(500, _error("oops", None))
        elif action == "401":
            # The real one repeats the key, too.
            key = self.headers["Authorization"].removeprefix("Bearer ")
            self._send(401, _error(f"Incorrect API key provided: {key}.", "invalid_api_key"))
        elif action == "filter":
            self._send(400, _error("not allowed", "content_policy_violation"))
        elif action == "hang":
            state.released.wait(30)
            self.close_connection = True
        elif action == "cut":
            self.close_connection = True
        elif action == "half":
            self._send(200, json.dumps(_completion(text)).encode()[:60])
        elif action == "html":
            self._send(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        elif action == "truncated":
            self._send(200, _completion(text[: len(text) // 2], finish_reason="length"))
        elif action == "empty":
            self._send(200, {**_completion(text), "choices": []})
        elif action == "missing":
            self._send(200, _completion("{}"))
        elif action == "late":
            state.released.wait(0.5)
            self._send(200, _completion(text))
        elif action == "drip":
            self._drip(_completion(text))
        elif action == "flood":
            self._flood(b"\0" * 65_536)
        elif action == "bomb":
            self._flood(zlib.compress(b" " * (64 << 20), 1), {"Content-Encoding": "deflate"})
        elif action in WRAPPERS:
            self._send(200, _completion(WRAPPERS[action](answers)))
        elif action.startswith("usage"):
            self._send(200, {**_completion(text), "usage": json.loads(action.removeprefix("usage"))})
        elif state.refused_pixels & set(pixels):
            self._send(200, _completion(None, refusal="I cannot help with that."))
        else:
            self._send(200, _completion(text))

    def _send(self, status: int, content: dict[str, Any] | bytes, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _drip(self, content: dict[str, Any]) -> None:
        """A byte at a time, each sooner than any time-out of a read, until the client has gone."""
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            for byte in data:
                if self.server_state.released.wait(0.05):
                    break
                self.wfile.write(bytes([byte]))
        self.close_connection = True

    def _flood(self, part: bytes, headers: dict[str, str] | None = None) -> None:
        """The same bytes until the client has gone, or had a gigabyte."""
        self.send_response(200)
        for key, value in {"Content-Length": str(1 << 30), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range((1 << 30) // len(part)):
                self.wfile.write(part)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Silence."""


def _first_pixel(url: str) -> int:
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))
    return int(image.reshape(-1)[0])


def _completion(text: str | None, *, refusal: str | None = None, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": message, "logprobs": None}],
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": COMPLETION_TOKENS,
            "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
        },
    }


def _error(message: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "code": code, "param": None}}
