"""Whatever image file comes, a site, its check and a device say and see the same: the right pixels, or why not."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dlfd_fleet.data import Manifest, Row, check_manifest, write_manifest
from dlfd_fleet.data.dataset import load_dataset
from dlfd_fleet.device.inference import read_image as read_on_device
from dlfd_fleet.exceptions import DataError, DeviceError, ImageError
from dlfd_fleet.model_input import image_input

SIDE = 32
GREY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
GREY[0, 0] = 255
DEEP = GREY.astype(np.uint16) * 257


def saved(pixels, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(content, kind, **options)
    return content.getvalue()


def png(bits: int, colour: int, pixels: np.ndarray, *chunks: bytes, width: int = 0) -> bytes:
    """Make a PNG file of a kind that Pillow does not write; rows are of big-endian bytes."""
    height, width = len(pixels), width or pixels.shape[1]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, colour, 0, 0, 0])
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def pixels_or_sentence(read: Callable[[], np.ndarray], error_type: type[Exception]) -> np.ndarray | str:
    try:
        return read()
    except error_type as error:
        return str(error)


def in_all_three_places(file: Path, silent) -> np.ndarray | str:
    """Return the pixels that a site and a device read, or why they and the check all refuse the file."""
    manifest = Manifest((Row(file.name, "anna", "hat"),), file.parent)
    write_manifest(manifest.rows, file.parent / "manifest.csv")
    problems = [problem.sentence for problem in check_manifest(file.parent / "manifest.csv", None, None, silent)]
    on_device = pixels_or_sentence(lambda: read_on_device(file, image_input(SIDE)), DeviceError)
    at_site = pixels_or_sentence(
        lambda: load_dataset(manifest, model_input=image_input(SIDE)).images[0].permute(1, 2, 0).numpy(), DataError
    )
    if isinstance(on_device, str):
        reason = on_device.removeprefix(f"Cannot read the image {file}: ").removesuffix(".")
        assert (at_site, problems) == (on_device, [f"{file}: {reason}"])
        return reason
    assert np.array_equal(at_site, on_device)
    assert problems == []
    return on_device


SCALED = {
    "16-bit PNG": saved(DEEP, "PNG"),
    "16-bit TIFF": saved(DEEP, "TIFF"),
    "16-bit TIFF, compressed": saved(DEEP, "TIFF", compression="tiff_lzw"),
    "16-bit TIFF, big-endian": saved(DEEP.astype(">u2"), "TIFF"),
    "16-bit TIFF, white is 0": saved(65535 - DEEP, "TIFF", tiffinfo={262: 0}),
    "signed 16-bit TIFF": saved((GREY / 255 * 32767).round().astype(np.uint16), "TIFF", tiffinfo={339: 2}),
    "16-bit JPEG 2000": saved(DEEP, "JPEG2000"),
    "16-bit PGM": saved(DEEP, "PPM"),
    "16-bit RGB PNG": png(16, 2, np.repeat(DEEP[..., None], 3, axis=2).astype(">u2")),
    "float TIFF from 0 to 1": saved((GREY / 255).astype(np.float32), "TIFF"),
    "float TIFF from 0 to 255": saved(GREY.astype(np.float32), "TIFF"),
    "32-bit TIFF from 0 to 255": saved(GREY.astype(np.int32), "TIFF"),
    "32-bit TIFF from 0 to 65,535": saved(DEEP.astype(np.int32), "TIFF"),
    "stereo photograph": saved(GREY, "MPO", save_all=True, append_images=[Image.fromarray(255 - GREY)], quality=100),
    "under another name": saved(GREY, "BMP"),
}


@pytest.mark.parametrize("content", SCALED.values(), ids=SCALED)
def test_deep_pixels_are_scaled_by_their_own_full_range(tmp_path, silent, content):
    (tmp_path / "face.jpg").write_bytes(content)
    found = in_all_three_places(tmp_path / "face.jpg", silent)
    assert not isinstance(found, str), found
    assert np.abs(found.astype(int) - GREY[..., None]).max() <= 1


def shadowed(grey: np.ndarray) -> np.ndarray:
    """16-bit colours that end at 255, but for white in one pixel that is transparent."""
    pixels = np.repeat(grey[..., None].astype(">u2"), 4, axis=2)
    pixels[..., 3] = 65535
    pixels[1, 1] = (65535, 65535, 65535, 0)
    return pixels


UNCLEAR = {
    "8 bits in a 16-bit PNG": saved(GREY.astype(np.uint16), "PNG"),
    "12 bits in a 16-bit PNG": saved(GREY.astype(np.uint16) * 16, "PNG"),
    "8 bits in a 16-bit RGB PNG": png(16, 2, np.repeat(GREY[..., None], 3, axis=2).astype(">u2")),
    "8 bits in a 16-bit RGBA PNG, white where it is transparent": png(16, 6, shadowed(GREY)),
    "float TIFF from 0 to 2,550": saved(GREY.astype(np.float32) * 10, "TIFF"),
    "float TIFF of degrees": saved((20 + GREY / 15).astype(np.float32), "TIFF"),
    "float TIFF below 0": saved(GREY.astype(np.float32) - 128, "TIFF"),
    "float TIFF with NaN": saved(np.where(GREY > 9, np.nan, GREY).astype(np.float32), "TIFF"),
    "float TIFF with infinity": saved(np.where(GREY > 9, np.inf, GREY).astype(np.float32), "TIFF"),
    "32-bit TIFF of millions": saved(GREY.astype(np.int32) * 10**6, "TIFF"),
}


@pytest.mark.parametrize("content", UNCLEAR.values(), ids=UNCLEAR)
def test_pixels_whose_white_is_unknown_are_refused_with_their_range(tmp_path, silent, content):
    (tmp_path / "face.png").write_bytes(content)
    reason = in_all_three_places(tmp_path / "face.png", silent)
    assert "save it with 8 bits" in reason
    assert "its values go from" in reason or "its colours end at" in reason or "infinite or no numbers" in reason


def hidden(kind: str, **options) -> bytes:
    """Make an image that is red above, and transparent with hidden red below."""
    pixels = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[: SIDE // 2, :, 3] = 255
    image = Image.fromarray(pixels)
    return saved(image.quantize() if options.pop("palette", False) else image, kind, **options)


TRANSPARENT = {
    "PNG": hidden("PNG"),
    "palette PNG": hidden("PNG", palette=True),
    "GIF": hidden("GIF"),
    "TIFF": hidden("TIFF"),
    "WebP": hidden("WEBP", lossless=True),
}


@pytest.mark.parametrize("content", TRANSPARENT.values(), ids=TRANSPARENT)
def test_transparent_pixels_are_white_whatever_colour_they_hide(tmp_path, silent, content):
    (tmp_path / "face.png").write_bytes(content)
    found = in_all_three_places(tmp_path / "face.png", silent)
    assert (found[: SIDE // 2] == (200, 0, 0)).all()
    assert (found[SIDE // 2 :] == 255).all()


STEPS = (np.array([[0, 1, 2, 3] * 2] * 8) * 85).astype(np.uint8)
DEEP_STEPS, KEY = STEPS.astype(">u2") * 257, (85 * 257).to_bytes(2, "big")
KEYED = {
    "2-bit grey": png(2, 0, np.full((8, 2), 0b00011011, np.uint8), chunk(b"tRNS", b"\0\1"), width=8),
    "16-bit grey": png(16, 0, DEEP_STEPS, chunk(b"tRNS", KEY)),
    "16-bit RGB": png(16, 2, np.repeat(DEEP_STEPS[..., None], 3, axis=2), chunk(b"tRNS", KEY * 3)),
}


@pytest.mark.parametrize("content", KEYED.values(), ids=KEYED)
def test_the_colour_that_a_png_file_calls_transparent_is_white_at_every_depth(tmp_path, content):
    (tmp_path / "face.png").write_bytes(content)
    assert np.array_equal(
        read_on_device(tmp_path / "face.png", image_input(8))[..., 0], np.where(STEPS == 85, 255, STEPS)
    )


OTHER_MODES = ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"]


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_every_colour_mode_of_tiff_shows_its_colours(tmp_path, mode):
    shown = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    image = Image.new("LAB", shown.size, (255, 128, 128)) if mode == "LAB" else shown.convert(mode)
    try:
        content = saved(image, "TIFF")
        Image.open(io.BytesIO(content)).load()
    except OSError:
        pytest.skip(f"This Pillow does not write and read {mode}")
    (tmp_path / "face.tif").write_bytes(content)
    assert (read_on_device(tmp_path / "face.tif", image_input(SIDE)) >= 254).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_images_are_turned_upright_at_every_depth(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.zeros((SIDE, SIDE), dtype=np.uint8)
    upright[: SIDE // 2, : SIDE // 2] = 255
    turned = {1: 0, 2: "x", 3: 2, 4: "y", 5: "t", 6: 1, 7: "v", 8: 3}[orientation]
    as_stored = {"x": upright[:, ::-1], "y": upright[::-1], "t": upright.T, "v": upright[::-1, ::-1].T}.get(
        turned, np.rot90(upright, turned) if isinstance(turned, int) else upright
    )
    deep = as_stored if kind == "JPEG" else as_stored.astype(np.uint16) * 257
    (tmp_path / "face").write_bytes(saved(np.ascontiguousarray(deep), kind, exif=exif))
    assert np.abs(read_on_device(tmp_path / "face", image_input(SIDE))[..., 0].astype(int) - upright).max() <= 3


FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - GREY).convert("RGB")]}
REFUSED = {
    "1 x 1": (saved(GREY[:1, :1], "PNG"), "1 by 1 pixels; the smallest side that is read is 8"),
    "7 x 32": (saved(GREY[:7], "PNG"), "32 by 7 pixels; the smallest side that is read is 8"),
    "8 x 81": (
        saved(np.zeros((8, 81), np.uint8), "PNG"),
        "no side may be more than 10 times the other",
    ),
    "90 million pixels": (saved(Image.new("1", (10000, 9000)), "PNG"), "more than the 89,478,485 pixels that are read"),
    "10,000 million pixels": (png(1, 0, np.zeros((100000, 0), np.uint8), width=100000), "89,478,485 pixels"),
    "transparent everywhere": (saved(Image.new("RGBA", (SIDE, SIDE)), "PNG"), "it is transparent everywhere"),
    "animated GIF": (saved(Image.fromarray(GREY), "GIF", **FRAMES), "it holds 2 images"),
    "animated PNG": (saved(Image.fromarray(GREY).convert("RGB"), "PNG", **FRAMES), "it holds 2 images"),
    "animated WebP": (saved(Image.fromarray(GREY).convert("RGB"), "WEBP", **FRAMES), "it holds 2 images"),
    "TIFF of two pages": (saved(Image.fromarray(GREY), "TIFF", **FRAMES), "it holds 2 images"),
    "EPS": (saved(Image.fromarray(GREY), "EPS"), "not an image of a kind that is read (AVIF, BMP, GIF, JPEG"),
    "TGA": (saved(Image.fromarray(GREY), "TGA"), "not an image of a kind that is read"),
    "text": (b"no image at all", "not an image of a kind that is read"),
    "nothing": (b"", "not an image of a kind that is read"),
}


@pytest.mark.parametrize(("content", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_shown_to_a_model_is_refused(tmp_path, silent, content, sentence):
    (tmp_path / "face.png").write_bytes(content)
    assert sentence in in_all_three_places(tmp_path / "face.png", silent)


def test_what_is_no_file_is_refused(tmp_path, silent):
    (tmp_path / "face.png").mkdir()
    assert in_all_three_places(tmp_path / "face.png", silent) == "it is a folder"
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it: who opens it waits for ever
    assert in_all_three_places(tmp_path / "pipe.png", silent) == "it is not a regular file"


def test_every_decoders_error_is_one_sentence(tmp_path):
    """Files of every format that Pillow writes here: cut off, with other bytes, with zeros."""
    Image.init()
    colours = np.random.default_rng(1).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    generator, file, read = random.Random(0), tmp_path / "face.img", 0
    for kind in sorted(Image.SAVE):
        for image in (Image.fromarray(colours), Image.fromarray(colours).convert("P"), Image.fromarray(DEEP)):
            try:
                whole = saved(image, kind)
            except (OSError, ValueError, KeyError, SyntaxError):
                continue  # a format of other modes
            for damage in range(6):
                content = bytearray(whole)
                place = generator.randrange(len(content))
                if damage % 3 == 0:
                    del content[place:]
                elif damage % 3 == 1:
                    content[place] ^= 1 << generator.randrange(8)
                else:
                    content[place : place + 20] = bytes(len(content[place : place + 20]))
                file.write_bytes(content)
                found = pixels_or_sentence(lambda: read_on_device(file, image_input(SIDE)), ImageError)
                read += not isinstance(found, str)
    assert read > 0


def test_a_decoder_prints_nothing_of_its_own(tmp_path, capfd):
    content = bytearray(saved(DEEP, "TIFF", compression="tiff_lzw"))
    content[100:-300] = b"\xff" * (len(content) - 400)
    (tmp_path / "face.tif").write_bytes(content)
    with pytest.raises(ImageError, match="it is damaged or not an image"):
        read_on_device(tmp_path / "face.tif", image_input(SIDE))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [RuntimeError, EOFError, MemoryError, struct.error, KeyError, AssertionError])
def test_whatever_a_decoder_raises_is_damage(tmp_path, monkeypatch, error):
    def fail(_image):
        raise error("decoder")

    (tmp_path / "face.png").write_bytes(saved(GREY, "PNG"))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ImageError, match="it is damaged or not an image"):
        read_on_device(tmp_path / "face.png", image_input(SIDE))
