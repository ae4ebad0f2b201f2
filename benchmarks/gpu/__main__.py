"""python -m benchmarks.gpu --out DIR: within nine minutes, what one GPU makes of this toolkit.

`results.md` and `results.json` are written anew as each stage ends, and each finding as it is made to STAGE.json, so
that a session that is cut leaves what it had. Ends with 0 where every stage ran and every goal was reached.
"""

import argparse
import os
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from benchmarks.gpu.stages import STAGES, session

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="try all of it on a CPU, in sizes that say nothing of time")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole session")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    well = session(args.stages, args.out, args.tiny, 60 * args.minutes)
    print((args.out / "results.md").read_text())
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
