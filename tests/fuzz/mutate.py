"""Changes valid inputs so that they stay nearly valid: bytes, JSON, lines of JSON, gzip and safetensors headers."""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

_NUMBERS = (0, 1, -1, 127, 128, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63, 2**64, 10**30)
_FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    *("", " ", ".", "..", "../../etc/passwd", "a\0b", "\ud800", "\u202e", "é", "\N{FIRE}" * 70, "a" * 65, "x" * 5000),
    *("*", ">", "0", "-1", "1e999", "NaN", "null", "a.b.c", "%s%n", "0" * 64, "f" * 64, "\n", "\x1b[2J", "a-b-c-d"),
    "1-" + "x" * 58 + "-1-1",
)
_RAW = (b"[" * 20_000, b'{"a":' * 20_000, b"NaN", b"-", b"1e999", b'"\\ud800"', b"9" * 5_000, b"\xff\xfe", b"\0" * 64)
SMALL, LARGE = 1 << 12, 1 << 18
"""Bytes up to which an input may be multiplied, and up to which it is changed again: the fuzzer takes 65,536."""
_STRUCTS = ("<B", "<H", "<I", "<Q", ">H", ">I", ">Q", "<f", "<d")


def mutated(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """``data`` changed in one to four places, by whatever way fits its format; ``others`` lend parts of themselves."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        if len(data) > LARGE:
            break
        way = rng.choice(_ways(data)) if rng.random() < 0.7 else _bytes
        data = way(data, rng, others)
    return data


def _ways(data: bytes) -> list[Callable[[bytes, random.Random, list[bytes]], bytes]]:
    start = data[:16].lstrip()
    if data[:2] == b"\x1f\x8b":
        return [_gzip]
    if start[:1] in (b"{", b"["):
        return [_lines, _json] if data.count(b"\n", 0, 1 << 16) > 1 else [_json]
    if len(data) > 9 and data[8:9] == b"{":
        return [_safetensors]
    if data[:4] == b"\x89PNG":
        return [_png]
    return [_bytes]


def _bytes(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    end = min(len(data), at + rng.choice((1, 2, 4, 8, 64)))
    match rng.randrange(7):
        case 0 if data:
            bit = rng.randrange(8 * len(data))
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            return bytes(changed)
        case 1:
            return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 8, 32))) + data[end:]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:at] + data[at:end] * rng.choice((2, 3, 50)) + data[end:]
        case 4:
            kind = rng.choice(_STRUCTS)
            pool: tuple[float, ...] = _FLOATS if kind[1] in "fd" else _NUMBERS
            try:
                number = struct.pack(kind, rng.choice(pool))
            except (struct.error, OverflowError):
                number = b"\xff" * struct.calcsize(kind)
            return data[:at] + number + data[at + len(number) :]
        case 5:
            other = rng.choice(others) if others else data
            start = rng.randint(0, len(other))
            return data[:at] + other[start : start + rng.choice((4, 64, 4096))] + data[end:]
        case _:
            return data[:at] + rng.choice(_RAW) + data[at:] if rng.random() < 0.3 else data[:at]


def _json(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, rng, others)
    places = _places(value)
    if not places:
        return json.dumps(_value(rng)).encode()
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(_TEXTS)] = holder[key]
        case 2:
            donor, name = rng.choice(places)
            holder[key] = json.loads(json.dumps(donor[name]))
        case 3 if isinstance(holder, list):
            holder *= rng.choice((0, 2, 200 if len(data) < SMALL else 2))
        case 4 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] += rng.choice((-1, 1, 0.5))
        case _:
            holder[key] = _value(rng)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside ``value``."""
    found: list[tuple[Any, Any]] = []
    open_: list[Any] = [value]
    while open_ and len(found) < 2_000:
        one = open_.pop()
        keys = list(one) if isinstance(one, dict) else list(range(len(one))) if isinstance(one, list) else []
        for key in keys:
            found.append((one, key))
            open_.append(one[key])
    return found


def _value(rng: random.Random) -> Any:
    return rng.choice(
        (rng.choice(_NUMBERS), rng.choice(_FLOATS), rng.choice(_TEXTS), None, True, [], {}, [[]], {"a": 1})
    )


def _lines(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case 1:
            del lines[at]
        case _:
            lines[at] = (_json if lines[at][:1] == b"{" else _bytes)(lines[at], rng, others)
    return b"\n".join(lines)


def _gzip(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    try:
        plain = gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return _bytes(data, rng, others)
    return gzip.compress(rng.choice(_ways(plain))(plain, rng, others), 1)


def _safetensors(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """The JSON header changed, its length made to fit again."""
    (size,) = struct.unpack_from("<Q", data)
    header = _json(data[8 : 8 + min(size, 1 << 20)], rng, others)
    return struct.pack("<Q", len(header)) + header + data[8 + min(size, len(data)) :]


def _png(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One chunk changed, its checksum made to fit again."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + size]])
        at += 12 + size
    if not chunks:
        return _bytes(data, rng, others)
    chosen = rng.choice(chunks)
    if rng.random() < 0.2:
        chunks.append(chosen)
    elif chosen[0] == b"IDAT" and rng.random() < 0.5:
        try:
            chosen[1] = zlib.compress(_bytes(zlib.decompress(chosen[1]), rng, others), 1)
        except zlib.error:
            chosen[1] = _bytes(chosen[1], rng, others)
    else:
        chosen[1] = _bytes(chosen[1], rng, others)
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return data[:8] + b"".join(parts)
