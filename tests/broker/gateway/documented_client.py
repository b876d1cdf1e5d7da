"""A whole client that uses only what docs/protocol.md says: nothing of fedbus is imported, only numpy and websockets.

It has no model, so it does not train: it says that it predicted the first image wrongly, and moves the parameters a
little. Put an engine into ``work``, and it is a real one. ``asyncio.run(main("http://127.0.0.1:8700", "TOKEN"))``.
"""

import asyncio
import contextlib
import functools
import hashlib
import json
import random
import struct
import urllib.request

import numpy as np
import websockets

STOP = {"token", "role", "name_taken", "version"}  # errors after which coming back does not help
OVER = {1000, 4001}  # close codes of the same kind
UNDER_WAY = 4  # chunks that are sent before the first is acknowledged


class Refused(Exception):
    """The gateway said ``error``; the code is the first argument."""


class Client:
    """One connection after the other under one name; ``held`` are the tasks under lease that are not over."""

    def __init__(self, url, token, name):
        self.url, self.token, self.name = url, token, name
        self.socket, self.held, self.uploads = None, {}, 0

    async def connect(self):
        """Says hello, and pings from then on: WebSocket pings do not count as life."""
        address = self.url.replace("http", "ws", 1) + "/ws"
        self.socket = await websockets.connect(address, compression=None)
        hello = {"protocol": 1, "token": self.token, "client": self.name, "engine": "documented/1.0"}
        await self.say("hello", **hello, resume=list(self.held))
        self.welcome = await self.hear("welcome")
        self.held = {lease: self.held[lease] for lease in self.welcome["resumed"]}
        self.pinging = asyncio.create_task(self.ping(self.socket))

    async def ping(self, socket):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await asyncio.sleep(self.welcome["heartbeat_s"])
                await socket.send('{"type": "ping"}')

    async def say(self, kind, **fields):
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def hear(self, *kinds):
        """The next message of these kinds; a task that is taken back is dropped on the way."""
        while True:
            message = json.loads(await self.socket.recv())
            if message["type"] == "task.revoked":
                self.held.pop(message["lease"], None)
            if message["type"] in kinds:
                return message
            if message["type"] == "error":
                raise Refused(message["code"], message["message"])

    async def take(self):
        """Asks for a task and waits until there is one; its lease."""
        await self.say("ready")
        assignment = await self.hear("assignment")
        self.held[assignment["lease"]] = assignment["task"]
        return assignment["lease"]

    async def fetch(self, ref):
        """The bytes of an object."""
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"{self.url}/objects/{ref['sha256']}", headers=headers)
        data = await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=30).read())
        assert hashlib.sha256(data).hexdigest() == ref["sha256"]
        return data

    async def work(self, task):
        """The encoded update of a task, and its metrics."""
        spec = json.loads(await self.fetch(task["spec"]))
        base = np.frombuffer(await self.fetch(spec["base_model"]), "<f4")
        images = pictures(await self.fetch(task["shard"]))
        # Here an engine would predict all images. This client takes the first label for a mismatch.
        first = next(at for at, label in enumerate(task["labels"]) if label is not None)
        predictions = [label or 0 for label in task["labels"]]
        predictions[first] = 0 if task["labels"][first] else 1
        # And here it would take a step on these, for each mismatch.
        batch = [images[first], *augmented(images[first], first, task["seed"], spec)]
        trained = base + np.random.default_rng(task["seed"]).normal(0, 1e-3, base.size).astype("f4")
        metrics = {
            "predictions": predictions,
            "examples": sum(label is not None for label in task["labels"]),
            "mismatched_images": 1,
            "trained_images": len(batch) * spec["epochs"],
        }
        return encoded(trained - base, spec["encoding"]), metrics

    async def upload(self, lease, data, metrics, *, sha256=None, stop_at=None):
        """The gateway's verdict; none when the task was taken back, or at ``stop_at`` bytes, as if there were a cut."""
        self.uploads += 1
        number, size, step = self.uploads, len(data), self.welcome["chunk_bytes"]
        digest = sha256 or hashlib.sha256(data).hexdigest()
        await self.say("upload.begin", lease=lease, upload=number, size=size, sha256=digest)
        answer = await self.hear_about(number)
        self.began_at = sent = answer.get("offset", 0)
        committed = False
        while answer["type"] == "upload.offset" and lease in self.held:
            if stop_at is not None and answer["offset"] >= stop_at:
                return None
            while sent < size and sent - answer["offset"] < UNDER_WAY * step:
                chunk = data[sent : sent + step]
                await self.socket.send(struct.pack("<IQ", number, sent) + chunk)
                sent += len(chunk)
            if sent == size and not committed:
                committed = True
                await self.say("upload.commit", lease=lease, upload=number, metrics=metrics)
            answer = await self.hear_about(number)
        self.held.pop(lease, None)
        return answer

    async def hear_about(self, upload):
        while True:
            answer = await self.hear("upload.offset", "upload.accepted", "upload.rejected", "task.revoked")
            if answer.get("upload", upload) == upload:
                return answer

    async def leave(self):
        """Gives what is held to others at once; the gateway closes the connection."""
        self.pinging.cancel()
        await self.say("leave")
        await self.socket.wait_closed()


def pictures(shard):
    """uint8 [n, height, width, channels] of a shard, which is a safetensors file."""
    (length,) = struct.unpack_from("<Q", shard)
    entry = json.loads(shard[8 : 8 + length])["images"]
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    return np.frombuffer(shard[begin:end], np.uint8).reshape(entry["shape"])


def encoded(delta, encoding):
    """The bytes of float32 [n]."""
    if encoding == "float32":
        return delta.astype("<f4").tobytes()
    if encoding == "float16":
        return delta.astype("<f2").tobytes()
    if encoding == "int8":
        blocks = [delta[at : at + 1024].astype(float) for at in range(0, len(delta), 1024)]
        scales = np.array([np.abs(block).max() / 127 for block in blocks], "<f4")
        divisors = np.where(scales > 0, scales, np.inf).astype(float)
        rounded = [np.rint(block / divisor) for block, divisor in zip(blocks, divisors, strict=True)]
        return scales.tobytes() + np.concatenate(rounded).clip(-127, 127).astype(np.int8).tobytes()
    kept = max(1, int(np.ceil(float(encoding.removeprefix("topk:")) * len(delta) - 1e-9)))
    places = np.sort(np.argsort(-np.abs(delta), kind="stable")[:kept])
    return places.astype("<u4").tobytes() + delta[places].astype("<f4").tobytes()


def mix(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor & 0xFFFFFFFF
    return x ^ x >> 16


def drawn_below(seed, which, slot, n):
    return mix(mix(seed) + (1 + slot + 8 * which) * 0x9E3779B9 & 0xFFFFFFFF) * n >> 32


def augmented(image, place, seed, spec):
    """The copies of a shard's image uint8 [height, width, channels] that is at this place."""
    ranges, (height, width, _) = spec["augmentation"], image.shape
    pixels, copies = image.astype(int), []
    for copy in range(1, spec["augmentations"] + 1):
        below = functools.partial(drawn_below, seed, copy + 64 * place)
        sign = -1 if ranges["flip"] and below(0, 2) else 1
        shift_x, shift_y = (below(slot, 2 * ranges["shift"] + 1) - ranges["shift"] for slot in (1, 2))
        turn, zoom = below(3, len(ranges["cos"])), ranges["inverse_scale"][below(4, len(ranges["inverse_scale"]))]
        offset = below(5, 2 * ranges["brightness"] + 1) - ranges["brightness"]
        gain = 256 + below(6, 2 * ranges["contrast"] + 1) - ranges["contrast"]
        a, b = (ranges[name][turn] * zoom + 2**15 >> 16 for name in ("cos", "sin"))
        dx = sign * (2 * np.arange(width) - (width - 1))[None, :]
        dy = (2 * np.arange(height) - (height - 1))[:, None]
        x = a * dx + b * dy + ((width - 1 - 2 * shift_x) << 16)
        y = a * dy - b * dx + ((height - 1 - 2 * shift_y) << 16)
        x0, fx, y0, fy = x >> 17, (x >> 9 & 255)[..., None], y >> 17, (y >> 9 & 255)[..., None]
        left, right = x0.clip(0, width - 1), (x0 + 1).clip(0, width - 1)
        upper, lower = (
            pixels[row, left] * (256 - fx) + pixels[row, right] * fx
            for row in (y0.clip(0, height - 1), (y0 + 1).clip(0, height - 1))
        )
        v = upper * (256 - fy) + lower * fy + 2**15 >> 16
        m = v.sum() // v.size
        copies.append((m + ((v - m) * gain + 128 >> 8) + offset).clip(0, 255).astype(np.uint8))
    return copies


async def main(url, token, name="documented"):
    """Does task after task, and comes back after every cut with what it holds."""
    client, results = Client(url, token, name), {}
    while True:
        try:
            await client.connect()
            while True:
                lease = next(iter(client.held), None) or await client.take()
                results = {lease: results.get(lease) or await client.work(client.held[lease])}
                await client.upload(lease, *results[lease])
        except Refused as error:
            if error.args[0] in STOP:
                raise
        except websockets.ConnectionClosed as error:
            if error.rcvd is not None and error.rcvd.code in OVER:
                return
        except (OSError, websockets.WebSocketException) as error:
            print(f"the gateway cannot be reached: {error}")
        finally:
            if client.socket is not None:
                await client.socket.close()
        await asyncio.sleep(random.uniform(0.5, 5))
