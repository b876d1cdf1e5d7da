"""Models in Hugging Face's layout: folders that ``from_pretrained`` loads, whole or as an adapter, and back again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from artifacts.errors import TakeOutError
from artifacts.manifest import ArtifactManifest
from artifacts.modes import LORA_SCALE, parse_mode
from artifacts.weights import Weights, hub_name, merged, unadapted
from bus.process.files import write_atomically

CONFIG, WEIGHTS, PROCESSOR, CARD = "config.json", "model.safetensors", "preprocessor_config.json", "README.md"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OTHER_ARTIFACTS = "name the artifacts of its kind with --artifacts"
_PEFT_PREFIX = "base_model.model."


def find_config(manifest: ArtifactManifest, weights: Weights, folders: tuple[Path, ...]) -> dict[str, Any]:
    """The config of the model that the artifacts were built from: their own, else that of a folder they name.

    Args:
        manifest: of the artifacts; older ones say only where their base was.
        weights: of the model, to know whether a config is of such a one.
        folders: where a base may lie: the base itself, or what its path is relative to.

    Raises:
        TakeOutError: neither is there.
    """
    kept = manifest.base.get("config")
    if isinstance(kept, dict):
        return dict(kept)
    source = str(manifest.base.get("source", ""))
    for folder in folders:
        for place in (folder / CONFIG, folder / source / CONFIG):
            config = _read_json(place)
            if _fits(config, manifest, weights):
                return config
    named = f" ({source})" if source else ""
    raise TakeOutError(
        f"the artifacts of {manifest.name!r} do not hold the config of their base model{named}",
        hint="name the folder of that model with --base, or leave its layout out: --format onnx --format raw",
    )


def write_pretrained(
    folder: Path, manifest: ArtifactManifest, weights: Weights, config: Mapping[str, Any], *, about: str
) -> list[Path]:
    """Writes the whole model, LoRA merged, as ``save_pretrained`` does; returns the paths."""
    classes = manifest.model.classes
    whole = {
        **config,
        "architectures": [manifest.model.architecture],
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
    }
    tensors = {hub_name(name): value for name, value in merged(weights).items()}
    size = manifest.model.image_size
    processor: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(manifest.model.mean),
        "image_std": list(manifest.model.std),
    }
    # A processor of its own knows more, such as how to resample; sizes and statistics are what was trained with.
    kept = manifest.base.get("processor")
    if isinstance(kept, dict):
        processor = {**kept, "size": processor["size"]} if _same_statistics(kept, processor) else processor
    return [
        _write(folder / CONFIG, _as_json(whole)),
        _write(folder / WEIGHTS, save(tensors, {"format": "pt"})),
        _write(folder / PROCESSOR, _as_json(processor)),
        _write(folder / CARD, _card(manifest, about)),
    ]


def write_adapter(folder: Path, manifest: ArtifactManifest, weights: Weights, *, about: str) -> list[Path]:
    """Writes the trained tensors as an adapter of ``peft`` for the base model; returns the paths.

    Raises:
        TakeOutError: the artifacts do not train with LoRA.
    """
    mode = parse_mode(manifest.mode)
    if mode.kind != "lora":
        raise TakeOutError(
            f"artifacts of the mode {mode} train no adapter", hint="take the whole model out: --format safetensors"
        )
    names = [one.name for one in manifest.trainable]
    adapted = {name.removesuffix(".lora_A.weight").rsplit(".", 1)[1] for name in names if "lora_A" in name}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(manifest.base.get("source", manifest.base.get("name", ""))),
        "r": mode.size,
        "lora_alpha": LORA_SCALE * mode.size,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(adapted),
        "modules_to_save": ["classifier"],
    }
    tensors = {f"{_PEFT_PREFIX}{name}": weights[name] for name in names}
    return [
        _write(folder / ADAPTER_CONFIG, _as_json(config)),
        _write(folder / ADAPTER_WEIGHTS, save(tensors, {"format": "pt"})),
        _write(folder / CARD, _card(manifest, about)),
    ]


def is_pretrained(path: Path) -> bool:
    """Whether a folder holds a model in this layout, whole or as an adapter."""
    return any((path / name).is_file() for name in (WEIGHTS, ADAPTER_WEIGHTS))


def read_pretrained(path: Path, base: Weights) -> Weights:
    """The weights of such a folder under the names of ``base``, which an adapter completes.

    Raises:
        TakeOutError: the files cannot be read, or are of another model.
    """
    adapter = not (path / WEIGHTS).is_file()
    file = path / (ADAPTER_WEIGHTS if adapter else WEIGHTS)
    # An adapter has LoRA's tensors and the head, a whole model everything but LoRA's tensors.
    wanted = [name for name in base if (_of_lora(name) == adapter) or (adapter and name.startswith("classifier."))]
    try:
        tensors = load_file(file)
        found = {name: tensors[_PEFT_PREFIX + name if adapter else hub_name(name)] for name in wanted}
    except (OSError, SafetensorError) as error:
        raise TakeOutError(f"{file} cannot be read: {error}") from None
    except KeyError as error:
        raise TakeOutError(f"{file} has no tensor {error}", hint=_OTHER_ARTIFACTS) from None
    if wrong := [name for name, value in found.items() if value.shape != base[name].shape]:
        raise TakeOutError(
            f"{file} is of another model: {wrong[0]} is {found[wrong[0]].shape}, not {base[wrong[0]].shape}",
            hint=_OTHER_ARTIFACTS,
        )
    plain = {name: value.astype(np.float32) for name, value in found.items()}
    return {**base, **plain} if adapter else unadapted(plain, base)


def _of_lora(name: str) -> bool:
    return ".lora_" in name


def _fits(config: Mapping[str, Any], manifest: ArtifactManifest, weights: Weights) -> bool:
    layers = len({name.split(".")[2] for name in weights if name.startswith("vit.layers.")})
    wanted = {
        "model_type": "vit",
        "image_size": manifest.model.image_size,
        "num_channels": manifest.model.channels,
        "hidden_size": len(weights["vit.layernorm.weight"]),
        "num_hidden_layers": layers,
    }
    return all(config.get(name) == value for name, value in wanted.items())


def _same_statistics(kept: Mapping[str, Any], processor: Mapping[str, Any]) -> bool:
    names = ("image_mean", "image_std")
    return kept.get("do_normalize", True) is True and all(kept.get(name) == processor[name] for name in names)


def _card(manifest: ArtifactManifest, about: str) -> bytes:
    return f"---\nlicense: {manifest.model.licence.lower()}\n---\n\n# {manifest.name}\n\n{about}\n".encode()


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _write(path: Path, content: bytes) -> Path:
    write_atomically(path, content)
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
