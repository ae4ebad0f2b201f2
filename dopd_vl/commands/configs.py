"""`dopd-vl configs`: the configurations that ship, each with its first line of comment."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dopd_vl.common.errors import ConfigurationError, nearest
from dopd_vl.common.resources import shipped
from dopd_vl.common.visible import print_line

TAKEN_BY = {
    "llm": "dopd-vl train, text",
    "vlm": "dopd-vl train, images and text",
    "prepare": "dopd-vl prepare",
    "evaluate": "dopd-vl evaluate",
    "study": "dopd-vl study: a world (study/worlds) and a question",
    "accelerate": "accelerate launch --config_file, by the path that `dopd-vl configs NAME` prints",
    ".": "several",
}
"""Folder of configs/ -> what takes its files."""


def main(argv: Sequence[str]) -> int:
    name = _parser().parse_args(argv).name
    root = shipped("configs")
    found = {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.yaml"))}
    if name is not None:
        if name not in found:
            raise ConfigurationError(f"NAME: no configuration {name!r}, {nearest(name, found)}")
        print_line(str(found[name]))
        return 0
    width = max(map(len, found))
    for folder, command in TAKEN_BY.items():
        print_line(f"{command}:")
        for short, path in found.items():
            if Path(short).parts[0] == folder or (folder == "." and "/" not in short):
                print_line(f"  {short:<{width}}  {_first_comment(path)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    described = "List the configurations that ship, each by the name that --config takes. See docs/README.md."
    parser = argparse.ArgumentParser(prog="dopd-vl configs", description=described)
    parser.add_argument("name", nargs="?", metavar="NAME", help="The path of this one is printed, e.g. of vlm/nano.")
    return parser


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    block = []
    for line in lines:
        if not line.startswith("#") or line.startswith("#  "):
            break
        block.append(line.removeprefix("#").strip())
    return " ".join(block).partition(". ")[0].rstrip(".")
