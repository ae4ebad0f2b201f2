"""Run folders for the report's tests, full of text that means harm, and the parts of a page."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dopd_vl.run_folder.kept_images import save_image

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><!--/*SCRIPT*/"


def run_folder(folder: Path, rollouts: bool = True, objective: str = "dopd", accuracy: float = 0.1) -> Path:
    """A run of two steps; its two rollouts are of one example, the second with a teacher's view of its own."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"objective:\n  name: {objective}\nseed: 0\n")
    rows = [{"step": step, "eval_accuracy": step * accuracy, "token_share/LH": 0.5} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not rollouts:
        return folder
    image = save_image(Image.new("RGB", (48, 32), (200, 30, 30)), folder / "images")
    first: dict[str, Any] = {
        "step": 1,
        "id": HOSTILE,
        "response": HOSTILE,
        "correct": False,
        "answer": HOSTILE,
        "tokens": [HOSTILE, " "],
        "logp/teacher/privileged": [-0.5, 0.0],
        "loss": [0.25, 0.0],
        "weight": [1.0, 0.6],
        "alternatives": {
            "teacher/privileged": [[[HOSTILE, 0.9], ["b", 0.05]], [[" ", 1.0]]],
            "student/plain": [[["c", 0.8]], [[" ", 1.0]]],
        },
        "images": [image],
        "boxes": [{"label": HOSTILE, "image": 0, "bbox": [100, 100, 500, 500]}],
        "views": [
            {"sources": ["student/plain"], "variant": "none", "prompt": "add"},
            {"sources": ["teacher/privileged"], "variant": "box_label", "prompt": "add [7, 2]"},
        ],
    }
    first |= {"gap": [1.0, 0.0], "regime": [2, 0]} if objective == "dopd" else {"advantage": [-1.5, 0.5]}
    shared = ("images", "boxes")
    second = {name: value for name, value in first.items() if name not in shared} | {
        "correct": True,
        "views": [{"sources": ["teacher/privileged"], "variant": "final_answer", "prompt": "add: 9"}],
    }
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (first, second)))
    return folder


class Elements(HTMLParser):
    """What a parser finds in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self.data = self.script = self.style = ""
        self._in = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = str(dict(attrs)["content"])
        self._in = "data" if ("id", "data") in attrs else tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in:
            setattr(self, self._in, getattr(self, self._in) + data)

    def json(self) -> Any:
        """The page's data, which must be JSON to the letter."""
        return json.loads(self.data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements
