"""Where the files lie that come with fedbus: beside the packages of a checkout, inside those of an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[2]
"""The folder that holds the packages: the root of a checkout, or site-packages."""

DEFAULT_ARTIFACTS = PACKAGES / "artifacts" / "default"
DEFAULT_USERS_DATA = PACKAGES / "data" / "fashion_mnist" / "users"
DEFAULT_HELD_OUT_DATA = PACKAGES / "data" / "fashion_mnist" / "held_out"

_INSTALLED_PAGE = PACKAGES / "agents" / "gateway" / "page"
PAGE = _INSTALLED_PAGE if _INSTALLED_PAGE.is_dir() else PACKAGES / "browser_client" / "dist"
"""The folder of the built page; a checkout that has not built it has none."""
