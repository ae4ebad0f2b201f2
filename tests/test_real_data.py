"""The scripts that make data of real packages: what they cut and compose is exact. Nothing is downloaded here."""

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.pages import ROOT, text_of

FOLDER = ROOT / "examples" / "real_data"


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import one another as they do when one of them is run."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", ["bigbench", "stamps", "packages"])
def test_the_examples_in_the_scripts_hold(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
    assert results.attempted > 0 or name == "packages"


def test_questions_get_their_options_answer_and_both_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    bigbench = importlib.import_module("bigbench")
    scores = '"target_scores": {"4": 0, "12": 1}'
    tasks = {
        "language": '{"examples": [{"input": "what is 5 + 7 ?\\nadd 5 to 7.", ' + scores + "}]}",
        "mathematical": '{"examples": [{"input": "what is 5 + 7 ?\\nadd(5, 7)", ' + scores + "}]}",
    }
    files = {f"a/question_with_{kind}_hint/task.json": text.encode() for kind, text in tasks.items()}
    monkeypatch.setattr(bigbench, "from_pypi", lambda requirement: Path("unused"))
    monkeypatch.setattr(bigbench, "members", lambda archive, inside: files)
    (row,) = bigbench.records()
    assert row["prompt"] == "what is 5 + 7 ?\n(A) 4\n(B) 12\nAnswer with the letter of one option."
    assert (row["answer"], row["privileged"]) == ("B", {"hints": ["Add 5 to 7."], "hint_summary": "add(5, 7)"})


def test_a_box_goes_to_the_tile_that_holds_half_of_it() -> None:
    aerial = importlib.import_module("aerial")
    image = Image.new("RGB", (2 * aerial.TILE + 30, aerial.TILE))
    boxes = np.array([[190, 10, 230, 50], [10, 10, 30, 30], [370, 0, 430, 20]], dtype=float)
    (_, left, at_left), (name, _, at_right) = aerial.tiles(image, boxes)
    assert (left.size, name) == ((aerial.TILE, aerial.TILE), "200-0")
    # Of the first box a quarter lies to the left; the last one is cut by the edge of the right tile, in half.
    assert at_left.tolist() == [[10, 10, 30, 30]]
    assert at_right.tolist() == [[0, 10, 30, 50], [170, 0, 200, 20]]


def test_the_boxes_of_a_scene_are_where_its_things_are() -> None:
    stamps = importlib.import_module("stamps")
    pool = []
    for number, colour in enumerate(((255, 0, 0), (0, 0, 255), (0, 90, 0))):
        thing = Image.new("RGBA", (90, 60), (0, 0, 0, 0))
        ImageDraw.Draw(thing).rectangle([0, 0, 89, 59], fill=(*colour, 255))
        pool.append((f"thing {number}", thing))
    for seed in range(5):
        picture, objects = stamps.scene(np.random.default_rng(seed), pool)
        assert objects
        found = np.zeros((stamps.SIZE[1], stamps.SIZE[0]), dtype=bool)
        for _, (x1, y1, x2, y2) in objects:
            assert not found[y1:y2, x1:x2].any()
            found[y1:y2, x1:x2] = True
        pixels = np.asarray(picture).astype(int)
        plain = pixels.min(axis=2) > 90  # the background is light, the things are not
        assert (plain == ~found).all()


def test_what_the_page_says_to_make_is_a_target_with_its_script_and_configuration() -> None:
    names = set(re.findall(r"`make data-(\w+)`", text_of("docs/real-data.md")))
    assert names
    for name in names:
        assert re.search(rf"^data-(.* data-)?{name}\b.*:", text_of("Makefile"), re.MULTILINE)
        assert (FOLDER / f"{name}.py").is_file()
        assert (ROOT / "configs" / "prepare" / f"{name}.yaml").is_file()
