"""Cards with a photographed thing and its name in print, read by RapidOCR: its boxes are the privilege.

    runs/ocr-venv/bin/python examples/real_data/ocr.py && dopd-vl prepare --config configs/prepare/ocr.yaml

What is printed is known, so how well the reader did is measured too. RapidOCR (Apache-2.0, weights inside) wants other
packages than the rest: `make data-ocr` gives it an environment of its own.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidocr import RapidOCR
from stamps import SIZE, background, stamps

OUTPUT = Path("runs/real/ocr")
CARDS = 120


def card(rng: np.random.Generator, pool: list[tuple[str, Image.Image]]) -> tuple[Image.Image, list[str]]:
    """A picture of one to three things in a row, the name of each in print below it, and the names from the left."""
    picture = background(rng)
    draw = ImageDraw.Draw(picture)
    names = []
    chosen = rng.choice(len(pool), rng.integers(1, 4), replace=False)
    width = SIZE[0] // len(chosen)
    for place, kind in enumerate(chosen):
        label, image = pool[kind]
        font_size = int(rng.integers(14, 29))
        font = ImageFont.load_default(font_size)
        while draw.textlength(label, font) > width - 12:
            font_size -= 1
            font = ImageFont.load_default(font_size)
        scale = min((width - 20) / image.width, 190 / image.height, 2.0)
        thing = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        middle = place * width + width // 2
        picture.paste(thing, (middle - thing.width // 2, 20 + (190 - thing.height) // 2), thing)
        draw.text((middle, 250), label, fill=(20, 20, 30), font=font, anchor="mm")
        names.append(label)
    return picture, names


def boxes_of(reader: RapidOCR, picture: Image.Image) -> list[dict]:
    """Every line of text that the reader sees: its words and the upright box around its four corners."""
    seen = reader(np.asarray(picture)[..., ::-1])
    if seen.boxes is None:
        return []
    corners = [np.asarray(box) for box in seen.boxes]
    return [
        {"label": text, "bbox": [*box.min(axis=0).tolist(), *box.max(axis=0).tolist()]}
        for text, box in zip(seen.txts, corners, strict=True)
    ]


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    pool = stamps()
    reader = RapidOCR(params={"Global.log_level": "warning"})
    (OUTPUT / "images").mkdir(parents=True, exist_ok=True)
    found = wanted = extra = 0
    with (OUTPUT / "records.jsonl").open("w", encoding="utf-8") as file:
        for number in range(CARDS):
            picture, names = card(rng, pool)
            picture.save(OUTPUT / "images" / f"card-{number:04d}.png")
            boxes = boxes_of(reader, picture)
            read = [box["label"].strip().lower() for box in boxes]
            found += sum(name in read for name in names)
            wanted += len(names)
            extra += sum(text not in names for text in read)
            row = {
                "id": f"card-{number:04d}",
                "prompt": "Which words are printed below the pictures? Read from left to right, with commas between.",
                "answer": ", ".join(names),
                "images": [f"card-{number:04d}.png"],
                "task": "exact",
                "privileged": {"boxes": boxes, "provenance": "rapidocr 3.10.0"},
            }
            file.write(json.dumps(row) + "\n")
    print(f"{OUTPUT}: {CARDS} cards; {found} of {wanted} names read exactly, {extra} other readings")
