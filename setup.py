"""Puts the built page into the wheel, where an installed gateway finds it; all else is in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CLIENT = Path("browser_client")


class BuildWithPage(build_py):
    """Copies packages and page; what an older build left in the folder does not come along."""

    def run(self) -> None:
        """Raises SystemExit with one line when the page is not built."""
        if self.editable_mode:
            super().run()
            return
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        page = CLIENT / "dist"
        if not (page / "index.html").is_file():
            raise SystemExit("a wheel needs the built page: `make wheel` builds it first")
        shutil.copytree(page, Path(self.build_lib) / "agents" / "gateway" / "page")


setup(cmdclass={"build_py": BuildWithPage})
