"""Aerial photographs with tree crowns that people boxed, cut into tiles, as a Pascal VOC folder to prepare.

    python examples/real_data/aerial.py && dopd-vl prepare --config configs/prepare/aerial.yaml

The photographs are of the package deepforest (MIT). A crown belongs to a tile when at least half of its box does.
"""

from pathlib import Path

import numpy as np
import supervision as sv
from packages import from_pypi, members
from PIL import Image

OUTPUT = Path("runs/real/aerial")
TILE = 200
"""pixels; crowns measure about 20"""


def tiles(image: Image.Image, boxes: np.ndarray) -> list[tuple[str, Image.Image, np.ndarray]]:
    """(name, tile, boxes in its pixels) of every whole tile of a photograph."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    found = []
    for top in range(0, image.height - TILE + 1, TILE):
        for left in range(0, image.width - TILE + 1, TILE):
            moved = np.clip(boxes - [left, top, left, top], 0, TILE)
            inside = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1]) >= areas / 2
            tile = image.crop((left, top, left + TILE, top + TILE))
            found.append((f"{left}-{top}", tile, moved[inside & (areas > 0)]))
    return found


if __name__ == "__main__":
    photographs, images = OUTPUT / "photographs", OUTPUT / "images"
    for folder in (photographs, images):
        folder.mkdir(parents=True, exist_ok=True)
    files = members(from_pypi("deepforest==2.1.0"), "deepforest/data/")
    for name in [name for name in files if name.endswith(".xml")]:
        picture = name.removesuffix(".xml") + ".png"
        for path in (name, picture):
            (photographs / Path(path).name).write_bytes(files[path])
    whole = sv.DetectionDataset.from_pascal_voc(str(photographs), str(photographs))
    paths, annotations = [], {}
    for path in whole.image_paths:
        with Image.open(path) as image:
            for place, tile, boxes in tiles(image.convert("RGB"), whole.annotations[path].xyxy):
                tile_path = str(images / f"{Path(path).stem}-{place}.png")
                tile.save(tile_path)
                paths.append(tile_path)
                if len(boxes):
                    annotations[tile_path] = sv.Detections(xyxy=boxes, class_id=np.zeros(len(boxes), dtype=int))
                else:
                    annotations[tile_path] = sv.Detections.empty()
    cut = sv.DetectionDataset(classes=["tree crown"], images=paths, annotations=annotations)
    cut.as_pascal_voc(annotations_directory_path=str(OUTPUT / "annotations"))
    print(f"{OUTPUT}: {len(paths)} tiles, {sum(map(len, annotations.values()))} boxes")
