"""What a page of the documentation shows, and a way to type its commands as they stand there."""

import glob
import re
import shlex
from itertools import chain
from pathlib import Path

from tests.commands import ROOT, dopd_vl, run_script


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str, language: str) -> list[str]:
    """The page's fenced blocks in that language, also those inside a list."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text_of(page), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]


def commands_of(page: str) -> list[str]:
    """The lines of its blocks of bash."""
    return [line for block in blocks_of(page, "bash") for line in block.splitlines() if line]


def write_files(folder: Path, page: str) -> None:
    """Save the page's blocks of YAML and Python that a paragraph above them names a file for: the last one it names."""
    named = r"`([\w.-]+\.(?:yaml|py))`(?:(?!`[\w.-]+\.(?:yaml|py)`|```).)*?\n```(?:yaml|python)\n(.*?)^```$"
    for name, text in re.findall(named, text_of(page), re.DOTALL | re.MULTILINE):
        (folder / name).write_text(text, encoding="utf-8")


def links_of(page: str) -> list[str]:
    """The files of the repository that it links to."""
    return re.findall(r"\]\((?!https?:)([^)#\s]+)", text_of(page))


def type_in(folder: Path, command: str, *more: str) -> None:
    """Type `dopd-vl ...` or `python FILE` in a folder, beside the shipped `configs`, with a few words more. It must
    succeed."""
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
    program, *words = shlex.split(command)
    if program == "python":
        script, *arguments = words
        result = run_script(folder / script, *arguments, *more, cwd=folder)
        assert result.returncode == 0, f"{command}: {result.stderr[-3000:]}"
        return
    assert program == "dopd-vl", command
    found = [sorted(glob.glob(word, root_dir=folder)) if "*" in word else [word] for word in words]
    # For the processes that a study starts.
    result = dopd_vl(*chain(*found), *more, cwd=folder, env={"PYTHONPATH": str(ROOT)}, timeout=600)
    assert result.returncode == 0, f"{command} {shlex.join(more)}: {result.stderr[-3000:]}"
