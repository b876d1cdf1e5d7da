from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents.cli.artifacts import app
from artifacts.base_model import load_base, read_classes
from artifacts.errors import ArtifactIntegrityError, ExportError
from artifacts.manifest import load_manifest
from tests.unit.artifacts.conftest import tiny_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


def test_build_makes_a_folder_with_the_options_given(model_folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n\n")
    options = "--train last-1 --optimizer adamw --learning-rate 0.002 --weight-decay 0.1 --clip-norm 1 --licence MIT"
    where = ["--model", str(model_folder), "-o", str(tmp_path / "out"), "--labels", str(labels)]
    result = CliRunner().invoke(app, ["build", *where, *options.split(), "--label-smoothing", "0.1"])
    assert result.exit_code == 0, result.exception
    assert "last-1" in result.stdout
    manifest = load_manifest(tmp_path / "out")
    assert manifest.model.classes == ("cat", "dog")
    assert manifest.model.licence == "MIT"
    assert manifest.optimizer.model_dump(exclude={"learning_rate_initializer"}) == {
        "kind": "adamw",
        "stateless": False,
        "learning_rate": 0.002,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    }


def test_show_reports_a_folder_and_finds_damage(model_folder: Path, tmp_path: Path) -> None:
    command = ["build", "--model", str(model_folder), "--train", "head", "-o", str(tmp_path)]
    assert CliRunner().invoke(app, command).exit_code == 0
    result = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert result.exit_code == 0
    assert "85 of" in result.stdout
    (tmp_path / "checkpoint").write_bytes(b"")
    assert isinstance(CliRunner().invoke(app, ["show", str(tmp_path)]).exception, ArtifactIntegrityError)


@pytest.mark.parametrize("option", ["--learning-rate=0", "--learning-rate=nan", "--label-smoothing=1", "--clip-norm=0"])
def test_numbers_out_of_range_are_refused(option: str, model_folder: Path, tmp_path: Path) -> None:
    command = ["build", "--model", str(model_folder), "--train", "head", "-o", str(tmp_path / "out"), option]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ExportError)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    command = ["build", "--model", str(model_folder), "--train", "head", "-o", str(tmp_path / "out")]
    assert isinstance(CliRunner().invoke(app, command).exception, ExportError)


def test_the_command_line_starts_without_torch() -> None:
    check = "import sys, agents.cli.artifacts; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "cat\n dog \n"), ("a.json", '["cat", "dog"]'), ("b.json", '{"0": "cat", "1": "dog"}')],
)
def test_class_names_are_read_from_lines_or_json(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == ["cat", "dog"]


@pytest.mark.parametrize("text", ["{", "3", "[1, 2]", '{"1": "cat"}'])
def test_other_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ExportError):
        read_classes(tmp_path / "a.json")


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ExportError, match="'bert'"):
        load_base(str(tmp_path))


def test_a_model_without_a_head_needs_class_names(tmp_path: Path) -> None:
    model = tiny_model()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("classifier.")}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ExportError, match="no classification head"):
        load_base(str(tmp_path))
    assert load_base(str(tmp_path), classes=["cat", "dog"]).classes == ("cat", "dog")


def test_a_model_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    weights = {name: value for name, value in model.state_dict().items() if "layernorm_after" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ExportError, match="lacks 4 weights"):
        load_base(str(tmp_path))
