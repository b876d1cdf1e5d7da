"""Which engine is used: by name, by what the artifacts offer, by what runs here, and with the reason said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import agents.engines
from agents.core.learning.contracts import Engine
from agents.engines import EngineMalformedError, EngineUnavailableError, EngineUnknownError, choose, engines
from artifacts.default_task import DEFAULT_DIRECTORY
from artifacts.manifest import ArtifactManifest, load_manifest


@dataclass(frozen=True)
class Maker:
    opens: str
    preference: int
    obstacle: str | None = None
    label: str = "a label"

    def why_not(self) -> str | None:
        return self.obstacle

    def open(self, manifest: ArtifactManifest, files: Mapping[str, Path], *, threads: int) -> Engine:
        raise NotImplementedError


FAST, FAST_NOT_HERE = Maker("step", 2), Maker("step", 2, "no graphics card")
SLOW = Maker("ort-training", 1)


def test_the_preferred_engine_that_the_artifacts_offer_is_chosen() -> None:
    known = {"fast": FAST, "slow": SLOW}
    assert choose(offered=["step", "ort-training"], known=known).name == "fast"
    assert choose(offered=["ort-training"], known=known).name == "slow"
    assert choose(known=known).name == "fast"


def test_the_reason_says_why_the_others_are_not_used() -> None:
    found = choose(offered=["step", "ort-training"], known={"fast": FAST_NOT_HERE, "slow": SLOW})
    assert found.name == "slow"
    assert "fast: no graphics card" in found.reason
    assert choose("slow", known={"fast": FAST, "slow": SLOW}).reason == "it was asked for"


def test_an_unknown_name_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(EngineUnknownError, match=r"'quick'.*fast, slow"):
        choose("quick", known={"fast": FAST, "slow": SLOW})


@pytest.mark.parametrize(
    ("known", "wanted", "offered", "reason"),
    [
        ({"fast": FAST_NOT_HERE, "slow": SLOW}, "fast", None, "no graphics card"),
        ({"fast": FAST, "slow": SLOW}, "fast", ["ort-training"], "files for ort-training and not for step"),
        ({"fast": FAST}, None, ["ort-training"], "not for step"),
        ({"fast": FAST}, None, [], "files for no engine"),
    ],
)
def test_an_engine_that_cannot_be_used_is_refused_with_the_reason(
    known: dict[str, Maker], wanted: str | None, offered: list[str] | None, reason: str
) -> None:
    with pytest.raises(EngineUnavailableError, match=reason):
        choose(wanted, offered, known)


def test_the_shipped_artifacts_offer_the_engine_that_trains_natively() -> None:
    offered = load_manifest(DEFAULT_DIRECTORY).offered
    assert choose(offered=offered).name == "ort-training"
    assert engines()["ort-training"].opens in offered


def test_no_engine_loads_its_binary_before_it_is_opened() -> None:
    code = "import sys, agents.engines as e; e.choose(); sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_dispatcher_needs_neither_onnx_nor_an_engine() -> None:
    unwanted = {"onnx", "onnxruntime", "artifacts"}
    code = f"import sys, agents.dispatcher.service; sys.exit(bool({unwanted} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no ENGINE"),
        ("class Half:\n    label = opens = 'half'\nENGINE = Half()\n", "without preference, why_not, open"),
        ("import nothing_of_this_name\n", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_file_that_is_no_engine_is_named(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unfinished.py").write_text(text)
    monkeypatch.setattr(agents.engines, "__path__", [*agents.engines.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "agents.engines.unfinished", raising=False)
    with pytest.raises(EngineMalformedError, match=rf"agents/engines/unfinished\.py .*{said}"):
        choose()
