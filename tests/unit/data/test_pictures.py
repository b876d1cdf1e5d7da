from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTImageProcessorPil

from artifacts.model_input import model_input
from data.dataset import ImageFormat
from data.errors import PictureError, PreparationError
from data.pictures import Resizing, read_picture, resizing_of
from tests.unit.data.pictures import picture, save

RGB = ImageFormat(size=16, channels=3)
GREY = ImageFormat(size=16, channels=1)
PLAIN = Resizing()


def mean_of(path: Path, target: ImageFormat = RGB) -> list[int]:
    return [round(float(value)) for value in read_picture(path, target, PLAIN).mean(axis=(0, 1))]


@pytest.mark.parametrize("resample", [0, 2, 3])
def test_resizing_gives_the_pixels_of_the_hugging_face_processor(resample: int) -> None:
    processor = ViTImageProcessorPil(
        size={"height": 16, "width": 16}, resample=resample, do_rescale=False, do_normalize=False
    )
    source = picture(1)
    expected = processor(images=source, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    stream = io.BytesIO()
    source.save(stream, "PNG")
    found = read_picture(stream, RGB, resizing_of(processor.to_dict(), RGB.size))
    assert np.array_equal(found, expected)


def test_a_shortest_edge_is_resized_and_the_middle_cut_out(tmp_path: Path) -> None:
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    found = read_picture(save(wide, tmp_path / "a.png"), RGB, Resizing(0, shortest_edge=16))
    assert found.shape == (16, 16, 3)
    assert (found[:, 2:14] == [0, 0, 255]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_gives_about_the_same_grey(mode: str, tmp_path: Path) -> None:
    grey = Image.new("L", (30, 20), 255 if mode == "1" else 128)
    if mode in {"I;16", "F"}:
        values = np.asarray(grey).astype(np.uint16 if mode == "I;16" else np.float32)
        image = Image.fromarray(values * 257 if mode == "I;16" else values / np.float32(255))
    else:
        image = grey.convert("RGB").convert(mode) if mode in {"CMYK", "YCbCr"} else grey.convert(mode)
    path = save(image, tmp_path / ("a.tif" if mode in {"CMYK", "YCbCr", "F"} else "a.png"))
    wanted = 255 if mode == "1" else 128
    assert all(abs(value - wanted) <= 1 for value in mean_of(path))
    assert abs(mean_of(path, GREY)[0] - wanted) <= 1


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    clear = save(Image.new("RGBA", (8, 8), (10, 20, 30, 0)), tmp_path / "a.png")
    assert mean_of(clear) == [255, 255, 255]
    half = save(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), tmp_path / "b.png")
    assert mean_of(half) == [127, 127, 127]
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert mean_of(save(palette, tmp_path / "c.gif", transparency=0)) == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    upright = Image.new("L", (16, 16), 0)
    upright.paste(255, (0, 0, 8, 8))
    undo: dict[int, Any] = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if undo[orientation] is None else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(stored, tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_picture(path, GREY, PLAIN)[..., 0], np.asarray(upright))


def test_the_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert mean_of(path) == [255, 0, 0]


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for side in (10_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path = tmp_path / f"{side}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
        with pytest.raises(PictureError, match="more than 90,000,000"):
            read_picture(path, RGB, PLAIN)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_a_truncated_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = save(picture(2), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PictureError):
        read_picture(path, RGB, PLAIN)


# A damaged header may ask for megapixels, which takes its time on a busy machine; pytest has the time limit.
@settings(max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]), st.integers(0, 400), st.binary(max_size=8))
def test_a_damaged_file_gives_a_picture_or_a_picture_error(kind: str, position: int, noise: bytes) -> None:
    stream = io.BytesIO()
    picture(3, (20, 20)).save(stream, kind)
    content = bytearray(stream.getvalue())
    content[position : position + len(noise)] = noise
    try:
        found = read_picture(io.BytesIO(bytes(content)), RGB, PLAIN)
    except PictureError:
        return
    assert found.shape == (16, 16, 3)


@pytest.mark.parametrize("content", [b"", b"some text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(PictureError):
        read_picture(io.BytesIO(content), RGB, PLAIN)


def test_unknown_processor_settings_fall_back_to_plain_resizing() -> None:
    assert resizing_of({}, 224) == Resizing(2, None)
    assert resizing_of({"size": 224, "resample": 99}, 224) == Resizing(2, None)
    assert resizing_of({"size": {"shortest_edge": 256}, "resample": 3}, 224) == Resizing(3, 256)
    cropping = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    assert resizing_of(cropping, 224) == Resizing(2, 256)
    assert resizing_of({"do_resize": False, "size": 384, "crop_size": 200}, 224) == Resizing(2, None)


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {"size": 384},
            {"size": {"height": 224, "width": 384}},
            {"size": [384, 384]},
            {"size": {"shortest_edge": 200}},
        ),
        {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 240},
        *({"size": {"shortest_edge": "large"}}, {"size": {"height": "a", "width": None}}),
    ],
)
def test_settings_that_contradict_the_models_size_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(PreparationError, match="the model takes 224 x 224"):
        resizing_of(settings, 224)


def test_a_hugging_face_folder_tells_what_its_model_takes(tmp_path: Path) -> None:
    config = {"image_size": 32, "num_channels": 3, "id2label": {"1": "dog", "0": "cat"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text('{"resample": 3, "size": {"height": 32, "width": 32}}')
    taken = model_input(tmp_path)
    assert (taken.image.size, taken.image.channels, taken.classes) == (32, 3, ("cat", "dog"))
    assert taken.resizing == Resizing(3, None)


@pytest.mark.parametrize("config", [None, "{", "[]", '{"image_size": [8, 9]}', '{"num_channels": 4}'])
def test_a_folder_that_is_no_model_is_refused(config: str | None, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(PreparationError):
        model_input(tmp_path)
