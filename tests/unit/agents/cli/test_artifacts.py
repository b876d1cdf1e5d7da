from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents.cli import main
from agents.cli.artifacts import app
from agents.cli.run_setup import check_fit
from artifacts.base_model import load_base
from artifacts.errors import ArtifactIntegrityError, ExportError
from artifacts.manifest import load_manifest
from data.dataset import UNLABELLED, load_dataset
from tests.imagenet_names import CRANES, imagenet_like_names
from tests.unit.artifacts.conftest import tiny_model
from tests.unit.data.pictures import picture, save


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


def fedbus(*arguments: object) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main.app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.exception
    return result.stdout


def test_a_model_with_two_classes_of_one_name_goes_all_the_way(tmp_path: Path) -> None:
    names = imagenet_like_names()
    tiny_model(
        id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)}
    ).save_pretrained(tmp_path / "model")
    (tmp_path / "labels.txt").write_text("\n".join(names))
    for folder in ("crane", "crane (517)", "ski"):
        save(picture(1), tmp_path / "pictures" / folder / "1.png")

    built = fedbus("artifacts", "build", "--model", tmp_path / "model", "--train", "head", "-o", tmp_path / "a")
    assert "crane (134), crane (517): classes that share a name" in built
    fresh = tmp_path / "b"
    fedbus(
        *("artifacts", "build", "--model", tmp_path / "model", "--train", "head", "-o", fresh),
        *("--labels", tmp_path / "labels.txt"),
    )
    classes = load_manifest(tmp_path / "a").model.classes
    assert classes == load_manifest(fresh).model.classes
    assert [classes[index] for index in CRANES] == ["crane (134)", "crane (517)"]

    for model in ("a", "model"):
        out = tmp_path / f"of {model}"
        said = fedbus("data", "prepare", tmp_path / "pictures", "-o", out, "--artifacts", tmp_path / model)
        assert "3 images of 8x8x3, 2 with one of 1000 labels" in said
        assert "pictures of crane (means crane (134) or crane (517))" in said
        assert load_dataset(out).labels.tolist() == [UNLABELLED, 517, 795]
        check_fit(load_manifest(tmp_path / "a"), load_dataset(out), out)

    fedbus("data", "prepare", tmp_path / "pictures", "-o", tmp_path / "plain")
    fedbus("data", "export", tmp_path / "plain", "-o", tmp_path / "files")
    said = fedbus("data", "import", tmp_path / "files", "-o", tmp_path / "back", "--model", tmp_path / "a")
    assert "pictures of crane (means crane (134) or crane (517))" in said
    assert load_dataset(tmp_path / "back").labels.tolist() == [UNLABELLED, 517, 795]


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


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "text"])
def test_damaged_weights_are_refused_with_a_typed_error(damage: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(
        {"cut": whole[:-9], "header": whole[:12] + b"?" + whole[13:], "empty": b"", "text": b"git"}[damage]
    )
    with pytest.raises(ExportError, match="cannot load") as caught:
        load_base(str(tmp_path))
    assert "save_pretrained" in caught.value.hint


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises(ExportError, match="cannot load"):
        load_base(str(tmp_path))


def test_a_processor_for_other_pictures_than_the_models_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 16}}))
    with pytest.raises(ExportError, match="16 x 16 pixels, the model takes 8 x 8"):
        load_base(str(tmp_path))
