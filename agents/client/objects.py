"""Fetches objects through the gateway, checks them, and keeps them on disk so that nothing is fetched twice."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from pathlib import Path

import httpx

from agents.client.address import Address, GatewayUnreachableError
from bus.errors import ObjectCorruptError, ObjectMissingError
from bus.words.values import Ref

READ_S = 30.0
ATTEMPTS = 6
IN_MEMORY_BYTES = 1 << 20
MEMORY_LIMIT_BYTES = 256 << 20
_BLOCK = 1 << 20


class ObjectCache:
    """Objects by their digest: small ones in memory, all of them in a folder that outlives the process."""

    def __init__(self, gateway: Address, folder: Path) -> None:
        self._http = httpx.AsyncClient(
            base_url=gateway.url, headers=gateway.headers, verify=gateway.tls() or True, timeout=httpx.Timeout(READ_S)
        )
        self._folder = folder
        self._memory: dict[str, bytes] = {}
        self._memory_bytes = 0
        self._fetching: dict[str, asyncio.Lock] = {}
        self.downloaded_bytes = 0

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def get(self, ref: Ref) -> bytes:
        """The object's bytes, checked.

        Raises:
            ObjectMissingError: the gateway does not give it.
            ObjectCorruptError: its bytes have another digest.
            GatewayUnreachableError: several attempts in a row brought nothing.
        """
        if (known := self._memory.get(ref.sha256)) is not None:
            return known
        path = await self.path(ref)
        data = await asyncio.to_thread(path.read_bytes)
        if len(data) <= IN_MEMORY_BYTES and self._memory_bytes + len(data) <= MEMORY_LIMIT_BYTES:
            self._memory[ref.sha256] = data
            self._memory_bytes += len(data)
        return data

    async def path(self, ref: Ref) -> Path:
        """A file with the object's bytes, checked when it was written; raises what ``get`` raises."""
        path = self._folder / ref.name
        async with self._fetching.setdefault(ref.sha256, asyncio.Lock()):
            if not path.exists() or path.stat().st_size != ref.size:
                await self._fetch(ref, path)
        return path

    async def _fetch(self, ref: Ref, path: Path) -> None:
        """Downloads to a file beside the target, going on at its end after a cut."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # Not by process id: clients in two containers share a cache, and both are process 1.
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            attempt = 0
            while True:
                before = _size(part)
                try:
                    await self._download(ref, part)
                    break
                except httpx.HTTPError as error:
                    # Only what brings nothing counts: over a network that is cut again and again it goes on.
                    attempt = 0 if _size(part) > before else attempt + 1
                    if attempt == ATTEMPTS:
                        raise GatewayUnreachableError(f"cannot fetch {ref.sha256}: {error!r}") from None
                    await asyncio.sleep(0.1 * 2**attempt)
            if await asyncio.to_thread(_digest, part) != ref.sha256:
                raise ObjectCorruptError(f"the gateway sent other bytes than {ref.sha256}")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    async def _download(self, ref: Ref, part: Path) -> None:
        have = _size(part)
        headers = {"Range": f"bytes={have}-"} if have else {}
        async with self._http.stream("GET", f"/objects/{ref.sha256}", headers=headers) as answer:
            if answer.status_code in (401, 403, 404):
                raise ObjectMissingError(f"the gateway does not give {ref.sha256} ({answer.status_code})")
            answer.raise_for_status()
            with part.open("ab" if answer.status_code == 206 else "wb") as file:
                # As they come: what waited for a block to be full would be lost with the connection.
                async for block in answer.aiter_bytes():
                    file.write(block)
                    self.downloaded_bytes += len(block)
                    if file.tell() > ref.size:
                        raise ObjectCorruptError(f"the gateway sent more than the {ref.size} bytes of {ref.sha256}")
        if _size(part) < ref.size:
            raise httpx.ReadError("the download ended early")


def default_cache() -> Path:
    """Where the user's caches lie."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fedbus" / "objects"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
