"""Tux Paint's stamps, mostly cut-out photographs, on backgrounds with exact boxes, as a YOLO folder to prepare.

    python examples/real_data/stamps.py && dopd-vl prepare --config configs/prepare/stamps.yaml

The stamps are of the Debian package tuxpaint-stamps-default (GPL-2), fetched at run time. Each has its English name in
a text file beside it.
"""

import re
from pathlib import Path

import numpy as np
from packages import from_debian
from PIL import Image

OUTPUT = Path("runs/real/stamps")
SCENES = 300
SIZE = (448, 336)
LARGEST = 256
"""pixels of a stamp's longer side; some have thousands"""
GROUPS = ("animals", "food", "hobbies", "household", "plants", "sports", "vehicles", "clothes")
_NAME = re.compile(r"^(?:an?|the|some)\s+", re.IGNORECASE)


def label_of(text: str) -> str | None:
    """A short name from a stamp's description, or None where it is a whole sentence.

    >>> label_of("An albino peahen (a female peafowl, or peacock).")
    'albino peahen'
    >>> label_of("No entry!") is None
    True
    """
    first = re.split(r"[(,:;]", text.strip().splitlines()[0])[0].strip()
    if not _NAME.match(first) or len(first.split()) > 4:
        return None
    return _NAME.sub("", first).rstrip(".! ").lower()


def stamps() -> list[tuple[str, Image.Image]]:
    """(label, cut-out with alpha) of every stamp that is a picture of one thing."""
    root = from_debian("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    found = []
    for path in sorted(path for group in GROUPS for path in (root / group).rglob("*.png")):
        text = path.with_suffix(".txt")
        label = label_of(text.read_text(encoding="utf-8")) if text.is_file() and "cartoon" not in path.parts else None
        if label:
            image = Image.open(path).convert("RGBA")
            box = visible(image)
            if box is not None and (np.asarray(image)[..., 3] < 128).mean() > 0.05:
                cut = image.crop(box)
                cut.thumbnail((LARGEST, LARGEST))
                found.append((label, cut))
    return found


def visible(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The box of the pixels that are at least half opaque."""
    return image.getchannel("A").point(lambda alpha: 255 * (alpha >= 128)).getbbox()


def background(rng: np.random.Generator) -> Image.Image:
    """A soft gradient between two colours, with grain."""
    colours = rng.uniform(110, 240, (2, 3))
    share = np.linspace(0, 1, SIZE[1])[:, None, None]
    pixels = colours[0] * (1 - share) + colours[1] * share + rng.normal(0, 4, (SIZE[1], SIZE[0], 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def scene(
    rng: np.random.Generator, pool: list[tuple[str, Image.Image]]
) -> tuple[Image.Image, list[tuple[str, tuple[int, ...]]]]:
    """A picture of one to three kinds of things, and (label, box) of each thing; no box meets another."""
    picture = background(rng)
    objects: list[tuple[str, tuple[int, ...]]] = []
    for kind in rng.choice(len(pool), rng.integers(1, 4), replace=False):
        label, image = pool[kind]
        for _ in range(rng.integers(1, 5)):
            scale = rng.uniform(48, 110) / max(image.size)
            small = image.resize((max(8, round(image.width * scale)), max(8, round(image.height * scale))))
            for _ in range(30):
                x, y = rng.integers(0, SIZE[0] - small.width), rng.integers(0, SIZE[1] - small.height)
                inner = visible(small)
                assert inner is not None
                box = (x + inner[0], y + inner[1], x + inner[2], y + inner[3])
                if all(box[2] <= b[0] or b[2] <= box[0] or box[3] <= b[1] or b[3] <= box[1] for _, b in objects):
                    picture.paste(small, (int(x), int(y)), small)
                    objects.append((label, box))
                    break
    return picture, objects


if __name__ == "__main__":
    import supervision as sv

    rng = np.random.default_rng(0)
    pool = stamps()
    (OUTPUT / "images").mkdir(parents=True, exist_ok=True)
    classes = sorted({label for label, _ in pool})
    paths, annotations = [], {}
    for number in range(SCENES):
        picture, objects = scene(rng, pool)
        path = str(OUTPUT / "images" / f"scene-{number:04d}.png")
        picture.save(path)
        paths.append(path)
        annotations[path] = sv.Detections(
            xyxy=np.array([box for _, box in objects], dtype=float),
            class_id=np.array([classes.index(label) for label, _ in objects]),
        )
    dataset = sv.DetectionDataset(classes=classes, images=paths, annotations=annotations)
    dataset.as_yolo(annotations_directory_path=str(OUTPUT / "labels"), data_yaml_path=str(OUTPUT / "data.yaml"))
    boxes = sum(map(len, annotations.values()))
    print(f"{OUTPUT}: {len(pool)} stamps of {len(classes)} names, {SCENES} scenes, {boxes} boxes")
