"""What a model wrote, read: JSON in free text, and boxes by their coordinates.

Whatever the text is, the outcome is a value or a `RecordError` with the reason. Read is what can only be meant in one
way: JSON among words, in a code fence or not, with thinking before it, with a comma too many at the end of a list, or
with LaTeX whose backslashes are not written twice. Nothing is completed and nothing guessed: JSON that breaks off, or
two values that differ, are refused.
"""

import json
import re
import reprlib
from typing import Any

from dopd_vl.common.errors import RecordError
from privileged.records.fields import number_list, shown_text, unique_keys
from privileged.rendering.boxes import GRID, clip, is_empty

MAX_REPLY = 100_000
"""Characters of a reply. A longer one is a runaway, not an annotation."""

MAX_BOXES, MAX_LABEL = 200, 200
"""Boxes of a reply, and characters of a label."""

SLACK = 0.005
"""Share of a side by which a box may leave its image: models round, and the box is then clipped."""

_UNITS = {"relative_1000": "in thousandths", "absolute": "in pixels", "relative_1": "as shares of its sides"}
_NUMBER = re.compile(r"-?\d{1,9}(?:\.\d{1,20})?", re.ASCII)

_JSON_START = re.compile(r"\{\s*+[\"}]|\[\s*+[{\]]")
"""An object, or a list of objects, begins; brackets of prose and of LaTeX look otherwise."""

# Texts are kept whole. A text without an end goes on to the end of the reply, so that it is not read again and again.
_LAST_COMMA = re.compile(r"(\"(?:[^\"\\]|\\.)*+\"?+)|,(?=\s*+[}\]])", re.DOTALL)

# JSON's own escapes are kept, unless they begin a LaTeX command: "\frac" would be read as a form feed and "rac".
_ESCAPE = re.compile(
    r"""\\(?:["\\/]|u[0-9a-fA-F]{4}|[bfr](?![a-zA-Z])"""
    r"|n(?!(?:eq?|ot(?:in)?|abla|u|eg|mid|exists|[lg]eq|earrow|warrow|parallel)(?![a-zA-Z]))"
    r"|t(?!(?:imes|heta|ext[a-z]*|anh?|au|o|op|frac|binom|ilde|herefore|riangle[a-z]*)(?![a-zA-Z])))"
    r"|(\\)"
)


def without_thinking(text: str) -> str:
    """The reply after its thinking.

    >>> without_thinking("<think>17 is prime.</think> yes")
    'yes'
    """
    # Some chat templates open the block in the prompt, so that a reply holds its end alone.
    _, closed, rest = text.rpartition("</think>")
    text = rest if closed else text
    if "<think>" in text:
        raise RecordError("the reply ends while still thinking")
    return text.strip()


def json_of(text: str) -> Any:
    r"""The one JSON object, or list of objects, that a reply holds.

    >>> json_of('Here it is:\n```json\n{"hint": "Count.",}\n```')
    {'hint': 'Count.'}
    """
    if len(text) > MAX_REPLY:
        raise RecordError(f"the reply has {len(text)} characters, more than the {MAX_REPLY} allowed")
    text = without_thinking(text)
    if not text:
        raise RecordError("the reply is empty")
    text = _LAST_COMMA.sub(lambda match: match.group(1) or "", with_latex_escaped(text))
    found: list[Any] = []
    start = _JSON_START.search(text)
    while start is not None and len(found) < 2:
        try:
            value, end = _DECODER.raw_decode(text, start.start())
        except RecordError as error:
            raise RecordError(f"the reply: {error}") from error
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of thousands of digits
            # What stands inside it is a part of what was meant, and is not looked for.
            raise RecordError(f"the reply is no JSON ({error}): {reprlib.repr(text)}") from error
        if value not in found:
            found.append(value)
        start = _JSON_START.search(text, end)
    if len(found) != 1:
        what = "holds different JSON values" if found else "is no JSON"
        raise RecordError(f"the reply {what}: {reprlib.repr(text)}")
    return found[0]


def with_latex_escaped(text: str) -> str:
    r"""JSON with the single backslashes of LaTeX commands doubled, as models often forget to do.

    >>> json.loads(with_latex_escaped(r'["Use \frac{1}{2} \times \\pi.\nThen \sqrt2."]'))
    ['Use \\frac{1}{2} \\times \\pi.\nThen \\sqrt2.']
    """
    return _ESCAPE.sub(lambda match: r"\\" if match.group(1) else match.group(), text)


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def grounded_boxes(
    text: str, size: tuple[int, int], image: int = 0, coordinates: str = "relative_1000"
) -> list[dict[str, Any]]:
    """Boxes in Qwen3-VL's form, [{"bbox_2d": [x1, y1, x2, y2], "label": "..."}], in pixels of `size`.

    The list may be empty: the image holds nothing that the question needs. supervision reads this form too, but
    forgives much that is refused here.

    Args:
        coordinates: What the numbers are: thousandths of the sides (relative_1000), pixels (absolute) or shares of the
            sides (relative_1).

    >>> grounded_boxes('[{"bbox_2d": [0, 250, 500, 1000], "label": "cup"}]', (200, 100))
    [{'label': 'cup', 'bbox': [0.0, 25.0, 100.0, 100.0], 'caption': None, 'image': 0}]
    """
    entries = _entries(text, "bbox_2d")
    if coordinates != "relative_1" and entries and all(value <= 1 for corners, _ in entries for value in corners):
        raise RecordError("all numbers of its boxes are at most 1, and so neither thousandths of the image nor pixels")
    boxes = []
    frame = coordinate_frame(coordinates, size)
    for number, (corners, label) in enumerate(entries):
        shares = [value / side for value, side in zip(corners, frame * 2, strict=True)]
        if not all(-SLACK <= share <= 1 + SLACK for share in shares):
            raise RecordError(f"box {number} leaves the image: {reprlib.repr(corners)} {_UNITS[coordinates]}")
        bbox = [share * side for share, side in zip(shares, size * 2, strict=True)]
        boxes.append(_pixel_box(bbox, label, number, size, image))
    return boxes


def coordinate_frame(coordinates: str, size: tuple[int, int]) -> tuple[float, float]:
    """The largest x and y that a box in an image of `size` can have.

    >>> coordinate_frame("relative_1000", (640, 480)), coordinate_frame("absolute", (640, 480))
    ((1000, 1000), (640, 480))
    """
    return {"relative_1000": (GRID, GRID), "absolute": size, "relative_1": (1, 1)}[coordinates]


def box_corners(text: str) -> list[list[float]]:
    """The numbers of the boxes in a reply, whatever they mean."""
    return [corners for corners, _ in _entries(text, "bbox_2d")]


def pixel_boxes(text: str, size: tuple[int, int], image: int = 0) -> list[dict[str, Any]]:
    """Boxes as a detector gives them: [{"bbox": [x1, y1, x2, y2] in pixels, "label": "..."}]."""
    entries = enumerate(_entries(text, "bbox"))
    return [_pixel_box(bbox, label, number, size, image) for number, (bbox, label) in entries]


def _entries(text: str, corners: str) -> list[tuple[list[float], str]]:
    """The four numbers under the key `corners`, and the label, of each box in a reply; a single box may stand alone."""
    entries = json_of(text)
    entries = [entries] if isinstance(entries, dict) else entries
    if len(entries) > MAX_BOXES:
        raise RecordError(f"the reply must be a list of at most {MAX_BOXES} boxes, not {reprlib.repr(entries)}")
    found = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {corners, "label"} <= set(entry):
            raise RecordError(f"box {number} must have {corners} and label, not {reprlib.repr(entry)}")
        label = reply_text(entry["label"], f"the label of box {number}", MAX_LABEL)
        numbers = entry[corners]
        if isinstance(numbers, list):
            numbers = [float(item) if isinstance(item, str) and _NUMBER.fullmatch(item) else item for item in numbers]
        found.append((number_list(numbers, 4, f"box {number}"), label))
    return found


def _pixel_box(bbox: list[float], label: str, number: int, size: tuple[int, int], image: int) -> dict[str, Any]:
    clipped = clip(bbox, *size)
    if is_empty(clipped):
        shown = ", ".join(f"{value:g}" for value in bbox)
        raise RecordError(f"box {number} [{shown}] holds no pixel of its {size[0]} x {size[1]} image")
    return {"label": " ".join(label.split()), "bbox": list(clipped), "caption": None, "image": image}


def reply_text(value: Any, where: str, longest: int) -> str:
    """A text that a reply must hold, not empty and not too long."""
    text = shown_text(value, where)
    if text is None:
        raise RecordError(f"{where} is empty")
    if len(text) > longest:
        raise RecordError(f"{where} has {len(text)} characters, more than the {longest} allowed")
    return text
