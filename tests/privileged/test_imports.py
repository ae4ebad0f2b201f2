"""`privileged` brings in no torch, of the toolkit only `dopd_vl.common`, and no heavy library before it is needed."""

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
from privileged import VARIANTS, load_privileged
heavy = {"datasets", "supervision", "pyarrow", "transformers", "jsonargparse"} & set(sys.modules)
assert not heavy, f"importing the variants must not import heavy libraries: {heavy}"
import privileged
for module in pkgutil.walk_packages(privileged.__path__, "privileged."):
    importlib.import_module(module.name)
assert "datasets" not in sys.modules, "the settings of prepare must import fast"
from PIL import Image
from privileged.records.records import parse_record
boxes = [{"label": "7", "bbox": [16, 16, 30, 30]}]
raw = {"prompt": "q", "answer": "a", "task": "exact", "images": [Image.new("RGB", (48, 48))]}
example = parse_record({**raw, "privileged": {"boxes": boxes}}).example()
assert sum(variant.missing(example) is None for variant in VARIANTS.values()) > 5
for variant in VARIANTS.values():
    if variant.missing(example) is None:
        variant.render(example)
foreign = [name for name in sys.modules if name.partition(".")[0] in ("torch", "transformers")]
foreign += [name for name in sys.modules if name.startswith("dopd_vl.") and not name.startswith("dopd_vl.common")]
assert not foreign, sorted(foreign)[:5]
"""


def test_importing_and_rendering_brings_in_no_torch_and_of_the_toolkit_only_common():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
