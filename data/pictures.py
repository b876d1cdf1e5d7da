"""Pictures of any format, size and mode to uint8 arrays at the resolution of a model, as its processor would do it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data.dataset import ImageFormat
from data.errors import PictureError, PreparationError

MAX_PIXELS = 90_000_000
"""Pictures beyond this are taken for decompression bombs; 90 megapixels decode to 270 MB."""
_TRANSPARENT = {"RGBA", "LA", "PA", "RGBa", "La"}
_DEEP = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
# Pillow hands these to an external program.
_EXTERNAL = {"EPS"}


@dataclass(frozen=True)
class Resizing:
    """How a picture becomes square, after a Hugging Face processor.

    Without `shortest_edge` both sides are resized to the target; with it, the shorter side becomes so long and the
    middle is cut out. `resample` is one of Pillow's filters.
    """

    resample: int = Image.Resampling.BILINEAR.value
    shortest_edge: int | None = None


def resizing_of(processor: Mapping[str, Any], target: int) -> Resizing:
    """Return what the settings of a Hugging Face image processor say about resizing; unknown settings are ignored.

    Raises PreparationError when they make pictures of another size than `target`, the pixels a side of the model's.
    """
    size, cropped = processor.get("size"), processor.get("do_center_crop", False)
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    made = _sides(processor.get("crop_size")) if cropped else None
    if made is None and processor.get("do_resize", True):
        made = _sides(size)
    if made not in (None, (target, target)):
        raise _contradiction(f"makes pictures of {made[0]} x {made[1]} pixels", target)
    if edge is not None and not (isinstance(edge, int) and edge >= target):
        raise _contradiction(f"makes pictures whose shorter side has {edge} pixels", target)
    resample = processor.get("resample", Resizing.resample)
    if resample not in {member.value for member in Image.Resampling}:
        resample = Resizing.resample
    return Resizing(resample, edge)


def _sides(size: object) -> tuple[object, object] | None:
    """Return the height and the width that a setting names, if it names both."""
    if isinstance(size, Mapping):
        return (size["height"], size["width"]) if size.keys() >= {"height", "width"} else None
    if isinstance(size, list | tuple) and len(size) == 2:
        return size[0], size[1]
    return (size, size) if isinstance(size, int) else None


def _contradiction(what: str, target: int) -> PreparationError:
    return PreparationError(
        f"the processor {what}, the model takes {target} x {target}",
        hint="correct the size in preprocessor_config.json, or image_size in config.json",
    )


def read_picture(source: Path | IO[bytes], target: ImageFormat, resizing: Resizing) -> NDArray[np.uint8]:
    """Return a picture as uint8 [size, size, channels]: upright, on white where transparent, the first frame.

    Raises PictureError with a short reason when it is no picture, broken, or too large to decode.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata, which does not matter here, and of bombs, which are refused below.
            warnings.simplefilter("ignore")
            with Image.open(source) as picture:
                _check_size(picture)
                return _squared(_upright(picture), target, resizing)
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError("not a picture that Pillow reads") from None
    except Image.DecompressionBombError:
        raise PictureError(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:
        # Pillow's many decoders raise whatever they meet in broken data.
        raise PictureError(f"broken: {type(error).__name__}: {error}"[:300]) from error


def open_upright(source: Path | IO[bytes]) -> Image.Image:
    """Return a picture as RGB in its own size, as `read_picture` sees it; raises PictureError as that does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source) as picture:
                _check_size(picture)
                return _with_channels(_upright(picture), 3)
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(f"broken or no picture: {type(error).__name__}"[:300]) from error


def _check_size(picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise PictureError(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")
    if not width or not height:
        raise PictureError("no pixels")
    if picture.format in _EXTERNAL:
        raise PictureError(f"{picture.format} files need an external program; convert them first")


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()
    return ImageOps.exif_transpose(picture)


def _squared(picture: Image.Image, target: ImageFormat, resizing: Resizing) -> NDArray[np.uint8]:
    picture = _with_channels(picture, target.channels)
    resample = Image.Resampling(resizing.resample)
    if resizing.shortest_edge is None:
        if picture.size != (target.size, target.size):
            picture = picture.resize((target.size, target.size), resample)
    else:
        width, height = picture.size
        short = min(width, height)
        edges = (resizing.shortest_edge * width // short, resizing.shortest_edge * height // short)
        left, top = (edges[0] - target.size) // 2, (edges[1] - target.size) // 2
        picture = picture.resize(edges, resample).crop((left, top, left + target.size, top + target.size))
    return np.asarray(picture, dtype=np.uint8).reshape(target.size, target.size, target.channels).copy()


def _with_channels(picture: Image.Image, channels: int) -> Image.Image:
    if picture.mode in _DEEP:
        picture = _eight_bits(picture)
    if picture.mode in _TRANSPARENT or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        picture = Image.alpha_composite(ground, layer)
    return picture.convert("L" if channels == 1 else "RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return 16-bit, 32-bit and floating-point grey as 8 bits; Pillow's own conversion would clip at 255."""
    values = np.nan_to_num(np.asarray(picture).astype(np.float64))
    top = 1.0 if picture.mode == "F" and values.max() <= 1.0 else 255.0 if values.max() <= 255 else 65_535.0
    return Image.fromarray(np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8))
