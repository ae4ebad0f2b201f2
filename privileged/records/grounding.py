"""What a model wrote, read: JSON in free text, and boxes by their coordinates.

Whatever the text is, the outcome is a value or a `RecordError` with the reason. Tolerated are thinking blocks, one code
fence with words around it, and LaTeX whose backslashes are not written twice; the JSON in them must be exactly what was
asked.
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

SLACK = 5
"""Thousandths by which a box may leave its image: models round, and the box is then clipped."""

_FENCE = re.compile(r"```[ \t]*+(?:\w++)?[ \t]*+\n(.*?)```", re.DOTALL)  # possessive: linear in any text

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
    r"""The JSON that a reply consists of, alone or in its only code fence.

    >>> json_of('Here it is:\n```json\n{"hint": "Count."}\n```')
    {'hint': 'Count.'}
    """
    if len(text) > MAX_REPLY:
        raise RecordError(f"the reply has {len(text)} characters, more than the {MAX_REPLY} allowed")
    text = without_thinking(text)
    if not text:
        raise RecordError("the reply is empty")
    if not text.startswith(("{", "[")):
        fences = _FENCE.findall(text)
        if len(fences) != 1:
            raise RecordError(f"the reply is no JSON and holds {len(fences)} code blocks: {reprlib.repr(text)}")
        text = fences[0].strip()
    text = with_latex_escaped(text)
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RecordError as error:
        raise RecordError(f"the reply: {error}") from error
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of thousands of digits
        raise RecordError(f"the reply is no JSON ({error}): {reprlib.repr(text)}") from error


def with_latex_escaped(text: str) -> str:
    r"""JSON with the single backslashes of LaTeX commands doubled, as models often forget to do.

    >>> json.loads(with_latex_escaped(r'["Use \frac{1}{2} \times \\pi.\nThen \sqrt2."]'))
    ['Use \\frac{1}{2} \\times \\pi.\nThen \\sqrt2.']
    """
    return _ESCAPE.sub(lambda match: r"\\" if match.group(1) else match.group(), text)


def grounded_boxes(text: str, size: tuple[int, int], image: int = 0) -> list[dict[str, Any]]:
    """Boxes in Qwen3-VL's form, [{"bbox_2d": [x1, y1, x2, y2] in thousandths, "label": "..."}], in pixels of `size`.

    The list may be empty: the image holds nothing that the question needs. supervision reads this form too, but
    forgives much that is refused here.

    >>> grounded_boxes('[{"bbox_2d": [0, 250, 500, 1000], "label": "cup"}]', (200, 100))
    [{'label': 'cup', 'bbox': [0.0, 25.0, 100.0, 100.0], 'caption': None, 'image': 0}]
    """
    boxes = []
    for number, (corners, label) in enumerate(_entries(text, "bbox_2d")):
        if not all(-SLACK <= value <= GRID + SLACK for value in corners):
            raise RecordError(f"box {number} leaves the image: {reprlib.repr(corners)} in thousandths")
        bbox = [value / GRID * side for value, side in zip(corners, size * 2, strict=True)]
        boxes.append(_pixel_box(bbox, label, number, size, image))
    return boxes


def pixel_boxes(text: str, size: tuple[int, int], image: int = 0) -> list[dict[str, Any]]:
    """Boxes as a detector gives them: [{"bbox": [x1, y1, x2, y2] in pixels, "label": "..."}]."""
    entries = enumerate(_entries(text, "bbox"))
    return [_pixel_box(bbox, label, number, size, image) for number, (bbox, label) in entries]


def _entries(text: str, corners: str) -> list[tuple[list[float], str]]:
    """The four numbers under the key `corners`, and the label, of each box in a reply."""
    entries = json_of(text)
    if not isinstance(entries, list) or len(entries) > MAX_BOXES:
        raise RecordError(f"the reply must be a list of at most {MAX_BOXES} boxes, not {reprlib.repr(entries)}")
    found = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or set(entry) != {corners, "label"}:
            raise RecordError(f"box {number} must have {corners} and label, not {reprlib.repr(entry)}")
        label = reply_text(entry["label"], f"the label of box {number}", MAX_LABEL)
        found.append((number_list(entry[corners], 4, f"box {number}"), label))
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
