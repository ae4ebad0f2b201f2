"""`privileged` stands alone: it brings in no torch, and nothing of the toolkit."""

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
import privileged
light = "datasets" not in sys.modules and "supervision" not in sys.modules and "pyarrow" not in sys.modules
assert light, "importing the variants must not import heavy libraries"
for module in pkgutil.walk_packages(privileged.__path__, "privileged."):
    importlib.import_module(module.name)
assert "datasets" not in sys.modules, "the settings of prepare must import fast"
from PIL import Image
from privileged.schema import FEATURES
boxes = [{"label": "7", "bbox": [16, 16, 30, 30]}]
raw = {"prompt": "q", "answer": "a", "task": "exact", "images": [Image.new("RGB", (48, 48))]}
record = privileged.records.parse_record({**raw, "privileged": {"boxes": boxes}})
for variant in privileged.VARIANTS.values():
    if variant.missing(record.example()) is None:
        variant.render(record.example())
foreign = sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "dopd_vl", "transformers"))
assert not foreign, foreign[:5]
"""


def test_importing_and_rendering_brings_in_no_torch_and_nothing_of_the_toolkit():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
