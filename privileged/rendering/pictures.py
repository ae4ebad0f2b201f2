"""What variants make of an image. Whatever is drawn at random is a function of the example's id: the rollouts of one
prompt, a resumed run and every rank see the same picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from privileged.rendering.boxes import evidence_region

if TYPE_CHECKING:
    from PIL.Image import Image

DEGRADED_SHARE = 0.1
"""VA-OPD (2605.21924): the image is shrunk to a tenth of each side and enlarged again."""
AUGMENTED_SIDES = (0.3, 0.6)
"""S2VOPD (2608.14144): shares of each side that an image keeps."""
NOISE = 0.11
"""S2VOPD: standard deviation of the noise, of pixels between -1 and 1."""
NOISY_SHARE = 0.5
"""S2VOPD: of the images that get noise."""
MASKED_SHARE = 1 / 3
"""OPD-V (2608.05131): of the crop's area that the rectangle covers."""
MASK_ASPECTS = (0.5, 2.0)
"""OPD-V: width over height of the rectangle."""

BBoxes = Sequence[Sequence[float]]
ROWS_AT_A_TIME = 64


def degrade(image: Image) -> Image:
    """The image down to a tenth of each side (a pixel at least) and back to its size, bicubic both ways."""
    from PIL.Image import Resampling

    small = image.convert("RGB").resize(_scaled(image.size, DEGRADED_SHARE), Resampling.BICUBIC)
    return small.resize(image.size, Resampling.BICUBIC)


def halve(image: Image) -> Image:
    """The image at half of each side (RP-OPSD, 2607.24447), by Lanczos' filter."""
    from PIL.Image import Resampling

    return image.convert("RGB").resize(_scaled(image.size, 0.5), Resampling.LANCZOS)


def augment(image: Image, random: Random) -> Image:
    """The image at a random size, and sometimes `sqrt(1 - NOISE^2) image + NOISE * normal` of it."""
    import numpy as np
    from PIL import Image as images

    share = random.uniform(*AUGMENTED_SIDES)
    small = image.convert("RGB").resize(_scaled(image.size, share), images.Resampling.LANCZOS)
    if random.random() >= NOISY_SHARE:
        return small
    normals, pixels = np.random.default_rng(random.getrandbits(64)), np.array(small)
    for rows in range(0, len(pixels), ROWS_AT_A_TIME):  # a whole picture of floats would be eight times the picture
        clean = pixels[rows : rows + ROWS_AT_A_TIME] / 127.5 - 1.0
        noisy = math.sqrt(1.0 - NOISE**2) * clean + NOISE * normals.standard_normal(clean.shape)
        pixels[rows : rows + ROWS_AT_A_TIME] = np.rint((noisy.clip(-1.0, 1.0) + 1.0) * 127.5)
    return images.fromarray(pixels)


def crop(image: Image, bboxes: BBoxes) -> Image:
    """The part around all boxes."""
    return image.crop(evidence_region(bboxes, *image.size))


def zoom(image: Image, bboxes: BBoxes) -> Image:
    """The part around all boxes, enlarged until one of its sides is that of the image."""
    from PIL.Image import Resampling

    part = crop(image.convert("RGB"), bboxes)
    scale = min(whole / side for whole, side in zip(image.size, part.size, strict=True))
    return part.resize(_scaled(part.size, scale), Resampling.BICUBIC)


def mask(image: Image, bboxes: BBoxes) -> Image:
    """The image with every box black."""
    masked = image.convert("RGB")
    masked = masked.copy() if masked is image else masked
    for x1, y1, x2, y2 in bboxes:
        masked.paste((0, 0, 0), (math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)))
    return masked


def masked_crop(image: Image, bboxes: BBoxes, random: Random) -> Image:
    """The part around all boxes, a third of it under one black rectangle of random shape and place."""
    part = crop(image.convert("RGB"), bboxes)
    width, height = part.size
    area = MASKED_SHARE * width * height
    wide = min(math.sqrt(area * random.uniform(*MASK_ASPECTS)), width)
    high = min(area / wide, height)
    wide, high = max(1, round(area / high)), max(1, round(high))
    left, top = random.randint(0, max(0, width - wide)), random.randint(0, max(0, height - high))
    part.paste((0, 0, 0), (left, top, left + wide, top + high))
    return part


def _scaled(size: tuple[int, int], share: float) -> tuple[int, int]:
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))
