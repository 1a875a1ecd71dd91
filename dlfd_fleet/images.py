"""One reader of image files, for sites and devices: a model answers for pixels that were made as those it learned from.

:func:`read_pixels` turns a file into the 8-bit pixels that a model takes, or raises an
:class:`~dlfd_fleet.exceptions.ImageError` whose sentence says why not. ``docs/reference/data.md`` says
what it does to which file.
"""

from __future__ import annotations

import ctypes
import logging
import re
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, _imaging

from dlfd_fleet.exceptions import ImageError
from dlfd_fleet.model_input import ModelInput

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read. Its other readers are less tested; EPS even starts a program."""

LEAST_SIDE = 8
"""Smallest side of an image, pixels: under it there is nothing to recognise."""

MOST_PIXELS = 89_478_485
"""Most pixels of an image: where Pillow begins to warn of files that fill the memory."""

LARGEST_RATIO = 10
"""Longest side of an image in shortest sides: resized to a square, a longer strip shows nothing."""

_KINDS = ", ".join(FORMATS)
_BACKGROUND = "white"
_LEAST_BRIGHTEST = 0.25
_GUESSED = (
    "and where white lies would be a guess: values are read from 0 to {}, with the brightest in the upper three "
    "quarters; save it with 8 bits"
)
_GREYS_OF_FEW_BITS = {"L;2": 85, "L;4": 17}
_DEEP_COLOURS = re.compile(";16[BLN]")
_PHOTOMETRIC = 262

# Pillow warns of damage on its way to an error, or reads on without harm; what matters is raised here. A filter of one
# call would not do: sites read in threads, and the filters are the whole process's.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Nor does Pillow's log come to a screen by itself: a program that wants it sets up logging.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# libtiff, inside Pillow, prints the errors that Pillow then raises; where it cannot be silenced, it goes on printing.
with suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


class _UnusableImageError(Exception):
    """The file was decoded, and what it holds is not to be used; the text is the reason."""


def read_pixels(file: Path, wanted: ModelInput) -> NDArray[np.uint8]:
    """Read an image: turned upright by its EXIF data, on white where it is transparent, as a model takes it.

    Parameters
    ----------
    file
        An image of one of the :data:`FORMATS`, whatever its name ends with.
    wanted
        Grey or RGB, height, width, and what becomes of another aspect.

    Returns
    -------
    ndarray
        uint8 ``(H, W, C)``.

    Raises
    ------
    ImageError
        If the file is missing, damaged, no image, or one whose pixels could only be guessed.
    """
    return _read(file, file, wanted)


def pixels_of(image: Image.Image | bytes, wanted: ModelInput, name: str) -> NDArray[np.uint8]:
    """Return the pixels of an open image, or of the bytes of a file, by the rules of :func:`read_pixels`.

    Parameters
    ----------
    name
        What an error calls the image.

    Raises
    ------
    ImageError
        If it is damaged, no image, or one whose pixels could only be guessed.
    """
    return _read(BytesIO(image) if isinstance(image, bytes) else image, Path(name), wanted)


def _read(source: Path | BytesIO | Image.Image, name: Path, wanted: ModelInput) -> NDArray[np.uint8]:
    opened = isinstance(source, Image.Image)
    try:
        if isinstance(source, Image.Image):
            return _pixels(source, wanted)
        if isinstance(source, Path):
            _check_file(source)
        with Image.open(source, formats=_known_formats()) as image:
            opened = True
            return _pixels(image, wanted)
    except _UnusableImageError as error:
        raise ImageError(name, str(error)) from None
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"it has more than the {MOST_PIXELS:,} pixels that are read; scale it down") from error
    # Decoders of damaged data raise whatever they come across: a decoder's every error is the file's fault.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(name, error.strerror) from error
        unknown = "" if opened else f" of a kind that is read ({_KINDS})"
        raise ImageError(name, f"it is damaged or not an image{unknown}") from error


def _check_file(file: Path) -> None:
    """Refuse folders, and pipes and the like, which nobody may ever write to."""
    file.stat()
    if not file.is_file():
        raise _UnusableImageError("it is a folder" if file.is_dir() else "it is not a regular file")


def _known_formats() -> tuple[str, ...]:
    """Return those of the formats that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _pixels(image: Image.Image, wanted: ModelInput) -> NDArray[np.uint8]:
    _check_size(*image.size)
    _check_frames(image)
    raw, negative = _raw_mode(image), _is_negative(image)  # the first is gone once it is loaded
    scales = _full_scales(image.mode, raw, image.format or "")
    upright = ImageOps.exif_transpose(image)
    if scales:
        upright = _eight_bits(upright, scales, negative)
    elif _DEEP_COLOURS.search(raw):
        _check_deep_colours(upright)
    opaque = _on_background(upright, raw)
    channels, height, width = wanted.shape
    if channels == 1:
        opaque = opaque.convert("L")
    if wanted.fit == "crop":
        fitted = ImageOps.fit(opaque, (width, height), Image.Resampling.BILINEAR)
    else:
        fitted = opaque.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(height, width, channels).copy()


def _check_size(width: int, height: int) -> None:
    shown = f"it is {width} by {height} pixels"
    if width * height > MOST_PIXELS:
        raise _UnusableImageError(f"{shown}, more than the {MOST_PIXELS:,} pixels that are read; scale it down")
    if min(width, height) < LEAST_SIDE:
        raise _UnusableImageError(f"{shown}; the smallest side that is read is {LEAST_SIDE} pixels")
    if max(width, height) > LARGEST_RATIO * min(width, height):
        raise _UnusableImageError(f"{shown}; no side may be more than {LARGEST_RATIO} times the other: crop it")


def _check_frames(image: Image.Image) -> None:
    """Refuse animations and files of several pages: nobody said which of their images is meant."""
    if image.format == "MPO":  # a camera's JPEG: the photograph, then its preview or the other eye's view
        return
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise _UnusableImageError(f"it holds {frames} images (an animation or pages); save the one that is meant alone")


def _raw_mode(image: Image.Image) -> str:
    """Return how the file holds its pixels, in Pillow's words, such as ``RGB;16B``; gone once it is loaded."""
    tile = getattr(image, "tile", None)  # an image that was made in memory has none
    if not tile:
        return ""
    arguments = tile[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _is_negative(image: Image.Image) -> bool:
    """Tell whether 0 is white, which Pillow turns round in TIFF files of 8 bits only."""
    tags = getattr(image, "tag_v2", {})
    return bool(tags.get(_PHOTOMETRIC, 1) == 0)


def _full_scales(mode: str, raw: str, kind: str) -> tuple[float, ...]:
    """Return the values that may stand for full brightness in an image of one deep channel; none for 8 bits."""
    if raw.startswith("I;12"):
        return (4095.0,)
    if raw.startswith("I;16") and raw.endswith("S"):
        return (32767.0,)
    if mode.startswith("I;16") or (mode == "I" and kind == "PPM"):  # Pillow has scaled PPM files
        return (65535.0,)
    return {"I": (255.0, 65535.0), "F": (1.0, 255.0)}.get(mode, ())


def _eight_bits(image: Image.Image, scales: tuple[float, ...], negative: bool) -> Image.Image:
    """Return an image of one deep channel with 8 bits, by the smallest full scale that holds its values."""
    values = np.asarray(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise _UnusableImageError("some of its values are infinite or no numbers; save it with 8 bits")
    scale = next((scale for scale in scales if high <= scale), 0.0)
    if low < 0.0 or not scale or high < scale * _LEAST_BRIGHTEST:
        known = " or ".join(f"{scale:,.0f}" for scale in scales)
        raise _UnusableImageError(f"its values go from {low:,g} to {high:,g}, {_GUESSED.format(known)}")
    levels = (values / scale * 255.0).round().astype(np.uint8)
    grey = Image.fromarray(255 - levels if negative else levels)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _check_deep_colours(image: Image.Image) -> None:
    """Refuse colours of 16 bits, of which Pillow has kept the upper 8, if their full scale is in doubt."""
    colours = np.asarray(image.convert("RGB"))
    if image.has_transparency_data:  # what lies hidden there says nothing of the rest
        colours = colours[np.asarray(image.convert("RGBA"))[..., 3] > 0]
    brightest = int(colours.max(initial=0))
    if brightest < 255 * _LEAST_BRIGHTEST:
        raise _UnusableImageError(f"its colours end at about {brightest * 257:,}, {_GUESSED.format('65,535')}")


def _on_background(image: Image.Image, raw: str) -> Image.Image:
    """Return an image in RGB, on white where it is transparent: what lies hidden there is nobody's to learn."""
    key = image.info.get("transparency")
    if isinstance(key, tuple) and _DEEP_COLOURS.search(raw):
        image.info["transparency"] = tuple(value >> 8 for value in key)  # as the colours are by now
    elif isinstance(key, int) and raw in _GREYS_OF_FEW_BITS:
        image.info["transparency"] = key * _GREYS_OF_FEW_BITS[raw]
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if clear.getchannel("A").getextrema()[1] == 0:
        raise _UnusableImageError("it is transparent everywhere; save it without its alpha channel")
    background = Image.new("RGBA", clear.size, _BACKGROUND)
    return Image.alpha_composite(background, clear).convert("RGB")
