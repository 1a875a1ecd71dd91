"""Draw synthetic faces: geometry by person, eyewear by class, noise by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dlfd_fleet.data.manifest import Row, write_manifest
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.progress import ProgressDisplay

_MODES = {1: "L", 3: "RGB"}


def synthesize(
    folder: Path,
    *,
    people: int,
    images_per_person: int,
    image_size: int,
    classes: int,
    seed: int,
    progress: ProgressDisplay,
    contrast: float = 1.0,
    grain: float = 8.0,
    mislabelled: float = 0.0,
) -> Path:
    """Draw faces into ``folder/images`` and write ``folder/manifest.csv``; return the manifest.

    A class is a number of bars over the eyes (0, 1, 2, ...). Every person mostly shows one class. The same seed draws
    the same files. By default the task is easy and a model remembers nobody. With faint eyewear, grain and wrong labels
    a model memorises people.

    Parameters
    ----------
    contrast
        How dark the bars are, from 0 (invisible) to 1 (black).
    grain
        Standard deviation of the pixel noise, in units of 1/255.
    mislabelled
        Share of images with a wrong label.

    Raises
    ------
    DataError
        If the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty; name a new folder for the synthetic faces.")
    rows = []
    with progress.phase(f"Drawing {people * images_per_person} faces", people) as advance:
        for number in range(people):
            generator = np.random.default_rng([seed, number])
            person = generator.random(8)
            usual = number % classes
            for photo in range(images_per_person):
                drawn = usual if generator.random() < 0.9 else int(generator.integers(classes))
                # Drawn from a generator of its own, so that the images of a seed are the same whatever their labels.
                wrong = np.random.default_rng([seed, number, photo]).random() < mislabelled
                label = (drawn + 1) % classes if wrong else drawn
                name = f"images/person-{number:05d}/{photo:03d}.png"
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                _face(person, drawn, image_size, generator, contrast, grain).save(file)
                rows.append(Row(name, f"person-{number:05d}", f"class-{label}"))
            advance()
    write_manifest(rows, folder / "manifest.csv")
    return folder / "manifest.csv"


def drawn_inputs(model_input: ModelInput, count: int, seed: int = 0) -> NDArray[Any]:
    """Return inputs that show no real person: drawn faces, or random numbers for a model without images.

    Returns
    -------
    array
        ``(count, H, W, C)`` uint8 pixels, or ``(count, *shape)`` numbers within the model's range.
    """
    if not model_input.is_image or model_input.shape[0] not in _MODES:
        return model_input.random(count, seed)
    channels, height, width = model_input.shape
    generator = np.random.default_rng(seed)
    faces = [_face(generator.random(8), 0, max(height, width), generator, 0.8, 4.0) for _ in range(count)]
    fitted = [face.convert(_MODES[channels]).resize((width, height)) for face in faces]
    return np.stack([np.asarray(face, dtype=np.uint8).reshape(height, width, channels) for face in fitted])


def _face(
    person: np.ndarray, label: int, size: int, generator: np.random.Generator, contrast: float, grain: float
) -> Image.Image:
    """Draw one photo; ``person`` holds eight numbers in [0, 1) that are the same in all photos of a person."""
    background, skin, hair = (tuple(int(60 + 180 * value) for value in np.roll(person, turn)[:3]) for turn in (0, 2, 4))
    image = Image.new("RGB", (size, size), background)
    draw = ImageDraw.Draw(image)
    shift_x, shift_y = generator.normal(0.0, 0.02, 2)
    middle_x, middle_y = 0.5 + shift_x, 0.52 + shift_y
    width, height = 0.22 + 0.12 * person[0], 0.30 + 0.12 * person[1]

    def box(left: float, top: float, right: float, bottom: float) -> list[float]:
        return [left * size, top * size, right * size, bottom * size]

    draw.ellipse(box(middle_x - width, middle_y - height * 1.1, middle_x + width, middle_y + height * 0.4), fill=hair)
    draw.ellipse(
        box(middle_x - width * 0.9, middle_y - height * 0.8, middle_x + width * 0.9, middle_y + height), fill=skin
    )
    eye_y, apart, eye = middle_y - height * 0.2, width * (0.3 + 0.2 * person[2]), 0.02 + 0.02 * person[3]
    for side in (-1, 1):
        x = middle_x + side * apart
        draw.ellipse(box(x - eye, eye_y - eye, x + eye, eye_y + eye), fill=(20, 20, 20))
    mouth = width * (0.3 + 0.3 * person[4])
    mouth_y = middle_y + height * (0.4 + 0.2 * person[5])
    draw.line(box(middle_x - mouth, mouth_y, middle_x + mouth, mouth_y), fill=(120, 30, 30), width=max(1, size // 32))
    shade = tuple(int(value * (1.0 - contrast)) for value in skin)
    for bar in range(label):
        y = eye_y + (bar - (label - 1) / 2) * 0.06
        draw.line(box(middle_x - width, y, middle_x + width, y), fill=shade, width=max(1, size // 24))
    pixels = np.asarray(image, dtype=np.float32) * generator.uniform(0.8, 1.1) + generator.normal(
        0, grain, (size, size, 3)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
