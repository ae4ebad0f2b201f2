"""What a policy is shown: the functions that turn an example into messages and images, one for each variant.

All of them leave the example as it is. Text goes after the content of the last user message; see
`privileged.rendering.variants` for the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from privileged.rendering.boxes import boxes_block, evidence_region, grounding_json
from privileged.schema import IMAGE_MARKER, Message

if TYPE_CHECKING:
    from PIL.Image import Image

ExampleLike = Mapping[str, Any]

DEGRADED_SHARE = 0.1
"""VA-OPD (2605.21924): the image is shrunk to a tenth of each side and enlarged again."""


@dataclass(frozen=True)
class RenderedPrompt:
    """Messages (image positions marked as in the example) and the images that they speak of."""

    messages: list[Message]
    images: list[Image]


def privilege(example: ExampleLike, key: str) -> Any:
    """One part of the example's privileged information; None when it or the whole struct is absent."""
    return (example.get("privileged") or {}).get(key)


def images_of(example: ExampleLike) -> list[Image]:
    return list(example.get("images") or [])


def image_sizes(example: ExampleLike) -> list[tuple[int, int]]:
    return [image.size for image in images_of(example)]


def plain(example: ExampleLike) -> RenderedPrompt:
    messages: list[Message] = [{"role": m["role"], "content": m["content"]} for m in example["prompt"]]
    return RenderedPrompt(messages, images_of(example))


def text_after(key: str, write: Callable[[Any], str]) -> Callable[[ExampleLike], RenderedPrompt]:
    """The function that shows one part of the privileged information, written as text after the prompt."""
    return lambda example: with_text(example, write(privilege(example, key)))


def boxes_after(*, with_label: bool = True, with_caption: bool = False) -> Callable[[ExampleLike], RenderedPrompt]:
    """The function that shows the boxes as grounding JSON after the prompt."""

    def draw_up(example: ExampleLike) -> RenderedPrompt:
        boxes, sizes = privilege(example, "boxes"), image_sizes(example)
        text = grounding_json(boxes, sizes, with_label=with_label, with_caption=with_caption)
        return with_text(example, boxes_block(text))

    return draw_up


def box_drawn(example: ExampleLike) -> RenderedPrompt:
    """Outlines and labels on the picture; what finds no room there without covering an object is written instead."""
    from privileged.rendering.drawing import draw_boxes

    boxes = privilege(example, "boxes")
    images = images_of(example)
    unmarked: list[int] = []
    for number, image in enumerate(images):
        mine = [index for index, box in enumerate(boxes) if (box.get("image") or 0) == number]
        if not mine:
            continue
        drawn = draw_boxes(image, [boxes[index] for index in mine])
        images[number] = drawn.image
        unmarked += [mine[index] for index in drawn.unmarked]
    parts = []
    if any(drawn is not original for drawn, original in zip(images, example["images"], strict=True)):
        parts.append(f"The relevant objects are outlined in the image{'s' if len(images) > 1 else ''}.")
    if unmarked:
        listed = grounding_json([boxes[index] for index in sorted(unmarked)], image_sizes(example))
        parts.append(boxes_block(listed, heading="Relevant objects that are not labelled in the picture"))
    return with_text(example, "\n".join(parts), images)


def evidence_crop(example: ExampleLike) -> RenderedPrompt:
    """Vision-OPD (2605.18740): each image that has boxes gives way to the part around all of them."""
    images = images_of(example)
    for number, image in enumerate(images):
        mine = [box["bbox"] for box in privilege(example, "boxes") if (box.get("image") or 0) == number]
        if mine:
            images[number] = image.crop(evidence_region(mine, *image.size))
    return RenderedPrompt(plain(example).messages, images)


def degraded(example: ExampleLike) -> RenderedPrompt:
    return RenderedPrompt(plain(example).messages, [degrade(image) for image in images_of(example)])


def degrade(image: Image, share: float = DEGRADED_SHARE) -> Image:
    """The image down to `share` of each side (a pixel at least) and back to its size, bicubic both ways."""
    from PIL.Image import Resampling

    width, height = image.size
    small = (max(1, round(width * share)), max(1, round(height * share)))
    return image.convert("RGB").resize(small, Resampling.BICUBIC).resize(image.size, Resampling.BICUBIC)


def with_text(example: ExampleLike, block: str, images: Sequence[Image] | None = None) -> RenderedPrompt:
    messages = append_to_last_user(example["prompt"], block)
    return RenderedPrompt(messages, images_of(example) if images is None else list(images))


def append_to_last_user(messages: Sequence[Message], block: str) -> list[Message]:
    r"""Copy `messages` with `block` after the content of the last user message, after a blank line.

    An image marker inside `block` would be read as one more image, so it is refused.

    >>> append_to_last_user([{"role": "user", "content": "2+2?"}], "Hint: count.")
    [{'role': 'user', 'content': '2+2?\n\nHint: count.'}]
    """
    if IMAGE_MARKER in block:
        raise ValueError(f"privileged text holds the image marker {IMAGE_MARKER!r}: remove it from the annotation")
    copied: list[Message] = [{"role": message["role"], "content": message["content"]} for message in messages]
    for message in reversed(copied):
        if message["role"] == "user":
            message["content"] = f"{message['content']}\n\n{block}"
            return copied
    raise ValueError("the prompt has no user message to write privileged text after")


def hints_block(steps: Sequence[str]) -> str:
    r"""
    >>> hints_block(["Find the digits.", "Add them."])
    'Hints:\n1. Find the digits.\n2. Add them.'
    """
    return "\n".join(["Hints:", *(f"{number}. {step.strip()}" for number, step in enumerate(steps, start=1))])


def line(heading: str) -> Callable[[str], str]:
    """
    >>> line("Hint")(" Count. ")
    'Hint: Count.'
    """
    return lambda text: f"{heading}: {text.strip()}"
