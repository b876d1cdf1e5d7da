"""The built pages, a small static server for them, and Debian's Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import uvicorn
from playwright.async_api import Browser, async_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

CLIENT = Path(__file__).parents[2] / "browser_client"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
CSP = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; worker-src 'self'"
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


def build(mode: str, folder: Path) -> Path:
    """Builds the page of ``mode`` into ``folder``; fails the test with Vite's words when that does not work."""
    vite = CLIENT / "node_modules" / ".bin" / "vite"
    if not vite.exists():
        pytest.fail("the browser client's packages are missing: run `npm ci` in browser_client")
    command = [str(vite), "build", "--mode", mode, "--outDir", str(folder), "--emptyOutDir"]
    done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def harness_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness that runs the client's modules on command."""
    return build("harness", tmp_path_factory.mktemp("harness"))


@pytest.fixture(scope="session")
def client_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that people open."""
    return build("production", tmp_path_factory.mktemp("page"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """One headless Chromium for all tests; each opens contexts of its own."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("Chromium is missing: install Debian's package chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        await browser.close()


@dataclass
class Site:
    """A served page: its address, and the paths that were asked for."""

    url: str
    requests: list[str]


@contextlib.asynccontextmanager
async def serve(page: Path, objects: dict[str, bytes], *, isolated: bool) -> AsyncIterator[Site]:
    """Serves a built page and objects by digest under the gateway's headers, on a free loopback port."""
    requests: list[str] = []

    async def get_object(request: Request) -> Response:
        requests.append(request.url.path)
        body = objects.get(request.path_params["digest"])
        return Response(status_code=404) if body is None else Response(body)

    async def get_file(request: Request) -> Response:
        path = page / (request.path_params["path"] or "index.html")
        if not path.is_file():
            return Response(status_code=404)
        headers = {"Content-Security-Policy": CSP, **(ISOLATION if isolated else {})}
        return FileResponse(path, media_type=MEDIA_TYPES.get(path.suffix), headers=headers)

    app = Starlette(routes=[Route("/objects/{digest}", get_object), Route("/{path:path}", get_file)])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([listener]))
        try:
            yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", requests)
        finally:
            server.should_exit = True
