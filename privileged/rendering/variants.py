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

>>> for name in ("degraded", "half_resolution", "augmented", "zoomed", "masked", "masked_crop"):
...     print(name, VARIANTS[name].render(example).images[0].size)
degraded (48, 48)
half_resolution (24, 24)
augmented (28, 28)
zoomed (48, 48)
masked (48, 48)
masked_crop (48, 48)

>>> show("wrong_hint")
Add the digits.
<BLANKLINE>
Hint: Multiply the digits.

>>> show("no_prompt")                                           # nothing at all, and no image
<BLANKLINE>
>>> show("positive_feedback")
Add the digits.
<BLANKLINE>
Feedback on a solution: it was worked out with care, each step was checked, and the answer is right.
>>> show("negative_feedback")
Add the digits.
<BLANKLINE>
Feedback on a solution: it was written in haste, no step was checked, and the answer is wrong.

The hints, or the solution, of another example, which its reader lays beside this one under the key "other":

>>> other = {
...     "id": "colour-3", "prompt": [{"role": "user", "content": "Which colour is the sign?"}],
...     "privileged": {"hints": ["Find the sign.", "Name its colour."]},
... }
>>> print(VARIANTS["other_hints"].render({**example, "other": other}).messages[-1]["content"])
Add the digits.
<BLANKLINE>
What follows is another problem, which has nothing to do with this one. Do not use it.
<BLANKLINE>
Which colour is the sign?
<BLANKLINE>
Hints:
1. Find the sign.
2. Name its colour.

>>> VARIANTS["hints"].missing({"id": "x", "privileged": {"hints": []}})
'it has no hints (privileged.hints)'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dopd_vl.common.errors import MissingPrivilege
from privileged.rendering import pictures, render
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


def _of_another(name: str, modality: Modality) -> Variant:
    """What a variant shows of another example, as text: does the content help, or any context (OP2SD)?"""

    def missing(example: ExampleLike) -> str | None:
        if example.get(OTHER) is None:
            return "no other example is laid beside it"
        reason = VARIANTS[name].missing(example[OTHER])
        return reason and f"of the other example, {example[OTHER].get('id')!r}: {reason}"

    def draw_up(example: ExampleLike) -> RenderedPrompt:
        return render.beside(example, VARIANTS[name].render(example[OTHER]))

    return Variant(
        f"{OTHER_PREFIX}{name}", modality, f"text and {name} of another example: a control", missing, draw_up
    )


OTHER_PREFIX = "other_"
"""What the names of variants that show another example begin with."""
OTHER = "other"
"""The key of an example under which another one may be laid beside it."""
PRAISE = "Feedback on a solution: it was worked out with care, each step was checked, and the answer is right."
BLAME = "Feedback on a solution: it was written in haste, no step was checked, and the answer is wrong."

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
            render.in_boxed_images(lambda image, bboxes, _: pictures.crop(image, bboxes))),
    Variant("masked_crop", "vision", "that part, a third of it under a black rectangle (OPD-V)", _boxes,
            render.in_boxed_images(pictures.masked_crop)),
    Variant("zoomed", "vision", "that part enlarged to the image's size", _boxes,
            render.in_boxed_images(lambda image, bboxes, _: pictures.zoom(image, bboxes))),
    Variant("masked", "vision", "the image with every box black: without the evidence", _boxes,
            render.in_boxed_images(lambda image, bboxes, _: pictures.mask(image, bboxes))),
    Variant("degraded", "vision", "the image down to a tenth of each side and back (VA-OPD)", _images,
            render.in_images(lambda image, _: pictures.degrade(image))),
    Variant("half_resolution", "vision", "the image at half of each side (RP-OPSD)", _images,
            render.in_images(lambda image, _: pictures.halve(image))),
    Variant("augmented", "vision", "the image at 0.3 to 0.6 of each side, half of them with noise (S2VOPD)", _images,
            render.in_images(pictures.augment)),
    Variant("wrong_hint", "any", "a misleading hint: a control", _part("wrong_hint", "wrong hint"),
            render.text_after("wrong_hint", render.line("Hint"))),
    Variant("no_prompt", "any", "an empty prompt and no image: what is left is habit (SA-OPD)", _nothing,
            render.no_prompt),
    Variant("positive_feedback", "any", "praise that holds nothing of the solution (Cal-OPD)", _nothing,
            lambda example: render.with_text(example, PRAISE)),
    Variant("negative_feedback", "any", "blame that holds nothing of the solution (Cal-OPD)", _nothing,
            lambda example: render.with_text(example, BLAME)),
    _of_another("hints", "text"),
    _of_another("hints_executed", "text"),
    _of_another("box_label", "vision"),
)  # fmt: skip

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _TABLE}
"""Every variant by its name."""
