"""The variants: which privileged information a policy sees, and in what form.

`VARIANTS` maps each name to a `Variant`. They are the conditions that the DOPD paper's analysis swaps (2606.30626),
and those of related work. A policy that sees no privileged information uses `none`. One example in each of them:

>>> from PIL import Image
>>> example = {
...     "id": "add-0", "answer": "9", "task": "number", "source": "demo",
...     "prompt": [{"role": "user", "content": "Add the digits."}],
...     "images": [Image.new("RGB", (48, 48))],
...     "privileged": {
...         "final_answer": "9",
...         "hints": ["Find every digit.", "Add them."],
...         "hints_executed": ["The digits are 7 and 2.", "7 + 2 = 9."],
...         "hint_summary": "Read the digits, then add.",
...         "caption": "Two digits, 7 and 2.",
...         "boxes": [
...             {"label": "7", "bbox": [2, 2, 14, 14], "caption": "a slanted 7", "image": 0},
...             {"label": "2", "bbox": [34, 34, 46, 46], "caption": None, "image": 0},
...         ],
...         "wrong_hint": "Multiply the digits.",
...         "provenance": "written by hand",
...     },
... }
>>> def show(name):
...     print(VARIANTS[name].render(example).messages[-1]["content"])

>>> show("none")
Add the digits.

>>> show("final_answer")
Add the digits.
<BLANKLINE>
The final answer is: 9

>>> show("hints")
Add the digits.
<BLANKLINE>
Hints:
1. Find every digit.
2. Add them.

>>> show("hints_executed")
Add the digits.
<BLANKLINE>
Hints:
1. The digits are 7 and 2.
2. 7 + 2 = 9.

>>> show("hint_summary")
Add the digits.
<BLANKLINE>
Hint: Read the digits, then add.

>>> show("caption")
Add the digits.
<BLANKLINE>
Image description: Two digits, 7 and 2.

>>> show("box_label")
Add the digits.
<BLANKLINE>
Relevant objects (coordinates relative to 0-1000):
```json
[{"bbox_2d": [42, 42, 292, 292], "label": "7"},
{"bbox_2d": [708, 708, 958, 958], "label": "2"}]
```

>>> show("box_caption")
Add the digits.
<BLANKLINE>
Relevant objects (coordinates relative to 0-1000):
```json
[{"bbox_2d": [42, 42, 292, 292], "label": "7", "caption": "a slanted 7"},
{"bbox_2d": [708, 708, 958, 958], "label": "2"}]
```

>>> show("box_only")
Add the digits.
<BLANKLINE>
Relevant objects (coordinates relative to 0-1000):
```json
[{"bbox_2d": [42, 42, 292, 292]},
{"bbox_2d": [708, 708, 958, 958]}]
```

>>> show("box_drawn")
Add the digits.
<BLANKLINE>
The relevant objects are outlined in the image.
>>> VARIANTS["box_drawn"].render(example).images[0].size
(48, 48)

>>> VARIANTS["evidence_crop"].render(example).images[0].size    # both boxes and a margin: the whole image
(48, 48)
>>> show("evidence_crop")
Add the digits.

>>> VARIANTS["degraded"].render(example).images[0].size         # 48 -> 5 -> 48
(48, 48)

>>> show("wrong_hint")
Add the digits.
<BLANKLINE>
Hint: Multiply the digits.

>>> VARIANTS["hints"].missing({"id": "x", "privileged": {"hints": []}})
'it has no hints (privileged.hints)'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dopd_vl.common.errors import MissingPrivilege
from privileged.rendering import render
from privileged.rendering.render import ExampleLike, RenderedPrompt, privilege

Modality = Literal["text", "vision", "any"]
Missing = Callable[[ExampleLike], "str | None"]


@dataclass(frozen=True)
class Variant:
    """One form of privileged information.

    `modality` says where the literature uses it: "vision" needs images; "text" is written for text prompts, yet works
    on any row that carries it; "any" is both.
    """

    name: str
    modality: Modality
    description: str
    missing: Missing
    """Why an example cannot be shown in this variant; None when it can."""
    draw_up: Callable[[ExampleLike], RenderedPrompt]

    def render(self, example: ExampleLike) -> RenderedPrompt:
        """Messages and images for one example, which stays as it is.

        Raises MissingPrivilege, with the example's id and the reason, when `missing` is not None.
        """
        reason = self.missing(example)
        if reason is not None:
            raise MissingPrivilege(
                f"example {example.get('id')!r} cannot be shown as variant {self.name!r}: {reason}. "
                "Choose another variant, or leave such examples out"
            )
        return self.draw_up(example)


def _nothing(example: ExampleLike) -> str | None:
    return None


def _part(key: str, what: str) -> Missing:
    def missing(example: ExampleLike) -> str | None:
        return None if privilege(example, key) else f"it has no {what} (privileged.{key})"

    return missing


def _images(example: ExampleLike) -> str | None:
    return None if example.get("images") else "it has no image"


def _caption(example: ExampleLike) -> str | None:
    return _images(example) or _part("caption", "caption")(example)


def _boxes(example: ExampleLike) -> str | None:
    if reason := _images(example) or _part("boxes", "boxes")(example):
        return reason
    count = len(example["images"])
    for number, box in enumerate(privilege(example, "boxes")):
        if not 0 <= (box.get("image") or 0) < count:
            return f"box {number} is in image {box['image']}, but there are {count} (counted from 0)"
    return None


def _labelled_boxes(example: ExampleLike) -> str | None:
    if reason := _boxes(example):
        return reason
    bare = [str(number) for number, box in enumerate(privilege(example, "boxes")) if not box.get("label")]
    return f"box {', '.join(bare)} has no label" if bare else None


def _captioned_boxes(example: ExampleLike) -> str | None:
    if reason := _boxes(example):
        return reason
    captioned = any(box.get("caption") for box in privilege(example, "boxes"))
    return None if captioned else "none of its boxes has a caption"


_TABLE = (
    Variant("none", "any", "nothing: what the deployed student sees", _nothing, render.plain),
    Variant("final_answer", "any", "the final answer", _part("final_answer", "final answer"),
            render.text_after("final_answer", render.line("The final answer is"))),
    Variant("hints", "text", "step-wise hints without any executed step (the paper's default for text)",
            _part("hints", "hints"), render.text_after("hints", render.hints_block)),
    Variant("hints_executed", "text", "step-wise hints with every step worked out",
            _part("hints_executed", "executed hints"), render.text_after("hints_executed", render.hints_block)),
    Variant("hint_summary", "text", "one hint in place of the steps", _part("hint_summary", "summarised hint"),
            render.text_after("hint_summary", render.line("Hint"))),
    Variant("caption", "vision", "a description of the image", _caption,
            render.text_after("caption", render.line("Image description"))),
    Variant("box_label", "vision",
            "boxes and labels as Qwen3-VL grounding JSON in the prompt (the paper's default for vision)",
            _labelled_boxes, render.boxes_after()),
    Variant("box_caption", "vision", "as box_label, with a caption for each box that has one", _captioned_boxes,
            render.boxes_after(with_caption=True)),
    Variant("box_only", "vision", "boxes in the prompt without labels", _boxes, render.boxes_after(with_label=False)),
    Variant("box_drawn", "vision", "boxes and labels drawn on the image", _boxes, render.box_drawn),
    Variant("evidence_crop", "vision", "the image cut down to the part around all boxes (Vision-OPD)", _boxes,
            render.evidence_crop),
    Variant("degraded", "vision", "the image down to a tenth of each side and back (VA-OPD)", _images,
            render.degraded),
    Variant("wrong_hint", "any", "a misleading hint: a control", _part("wrong_hint", "wrong hint"),
            render.text_after("wrong_hint", render.line("Hint"))),
)  # fmt: skip

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _TABLE}
"""Every variant by its name."""
