"""Finds Chromium and says how to start it without a window, training on its own."""

from __future__ import annotations

import html
import os
import shutil
from pathlib import Path
from urllib.parse import urlencode

from agents.cli.processes import Command
from agents.cli.settings import CommandSettings
from bus.errors import FedbusError
from bus.process.files import write_private

START = "start.html"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-quic",
    "--mute-audio",
    "--enable-logging=stderr",
)


class ChromiumMissingError(FedbusError):
    """No Chromium on this machine."""

    code = "chromium_missing"


def find_chromium() -> Path:
    """The Chromium to use: ``FEDBUS_CHROMIUM`` when set, else the first of the usual names on PATH.

    Raises:
        ChromiumMissingError: there is none.
    """
    if chosen := CommandSettings().chromium:
        if chosen.is_file():
            return chosen
        raise ChromiumMissingError(f"FEDBUS_CHROMIUM names {chosen}, which is no file")
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    raise ChromiumMissingError(
        "no Chromium found",
        hint="install it (Debian: apt-get install -y chromium), set FEDBUS_CHROMIUM, or train with --clients native:2",
    )


def browser_client(
    name: str, gateway: str, token: str, *, profile: Path, log_path: Path, threads: int = 1, engine: str = ""
) -> Command:
    """The command of one headless browser that opens the gateway's page and trains at once.

    It starts at a file that sends it on, because every user of the machine can read a command line, and the page's
    address holds the token.
    """
    asked = {"client": name, "autostart": "1", "threads": str(threads), **({"engine": engine} if engine else {})}
    query = urlencode(asked)
    # Chromium refuses its sandbox to root, and only to root.
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    return Command(
        name=name,
        argv=(
            str(find_chromium()),
            *FLAGS,
            *sandbox,
            f"--user-data-dir={profile}",
            "--window-size=1280,900",
            (profile / START).as_uri(),
        ),
        log_path=log_path,
        prepare=lambda: _lay_out(profile, f"{gateway}/?{query}#token={token}"),
    )


def _lay_out(profile: Path, address: str) -> None:
    """An empty profile with the page that leads to ``address``."""
    shutil.rmtree(profile, ignore_errors=True)
    profile.mkdir(parents=True, mode=0o700)
    page = f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}">'
    write_private(profile / START, page)
