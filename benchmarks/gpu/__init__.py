"""One session on one GPU: what it makes of the loss, of whole steps and of the commands; README.md says how."""

import sys
from pathlib import Path

# The benchmarks beside this package are scripts, which import each other by their bare names.
sys.path.append(str(Path(__file__).parents[1]))
