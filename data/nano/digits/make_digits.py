"""Make digits.png and digits.json from scikit-learn's copy of the UCI set. Run once; needs scikit-learn.

python data/nano/digits/make_digits.py
"""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

HELDOUT = 497
COLUMNS = 43


def main() -> None:
    digits = load_digits()
    images = digits.images.astype(np.uint8)  # [1797, 8, 8], 0 (paper) .. 16 (ink)
    labels = [int(label) for label in digits.target]
    rows = -(-len(labels) // COLUMNS)
    sheet = np.zeros((rows * 8, COLUMNS * 8), np.uint8)
    for index, image in enumerate(images):
        top, left = index // COLUMNS * 8, index % COLUMNS * 8
        sheet[top : top + 8, left : left + 8] = image * 15
    # Stratified: every label gives the same share of its digits to the held-out split.
    rng = random.Random(0)
    by_label = {label: [i for i, other in enumerate(labels) if other == label] for label in range(10)}
    quotas = {label: len(indexes) * HELDOUT / len(labels) for label, indexes in by_label.items()}
    counts = {label: int(quota) for label, quota in quotas.items()}
    for label in sorted(quotas, key=lambda label: counts[label] - quotas[label])[: HELDOUT - sum(counts.values())]:
        counts[label] += 1
    heldout = sorted(index for label, indexes in by_label.items() for index in rng.sample(indexes, counts[label]))
    folder = Path(__file__).parent
    Image.fromarray(sheet).save(folder / "digits.png", optimize=True)
    split = "".join("h" if index in set(heldout) else "t" for index in range(len(labels)))
    contents = {"columns": COLUMNS, "cell": 8, "levels": 16, "labels": "".join(map(str, labels)), "split": split}
    (folder / "digits.json").write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
