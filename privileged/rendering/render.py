"""What a policy is shown: the functions that turn an example into messages and images, one for each variant.

All of them leave the example as it is. Text goes after the content of the last user message; see
`privileged.rendering.variants` for the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from privileged.rendering.boxes import boxes_block, grounding_json
from privileged.rendering.pictures import BBoxes
from privileged.schema import IMAGE_MARKER, Message

if TYPE_CHECKING:
    from PIL.Image import Image

ExampleLike = Mapping[str, Any]

UNRELATED = "What follows is another problem, which has nothing to do with this one. Do not use it."
"""After OP2SD (2608.09228)."""


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


def in_images(change: Callable[[Image, Random], Image]) -> Callable[[ExampleLike], RenderedPrompt]:
    """The function that shows every image changed, the prompt as it is; of an example always by the same numbers."""

    def draw_up(example: ExampleLike) -> RenderedPrompt:
        random = Random(str(example["id"]))
        return RenderedPrompt(plain(example).messages, [change(image, random) for image in images_of(example)])

    return draw_up


def in_boxed_images(change: Callable[[Image, BBoxes, Random], Image]) -> Callable[[ExampleLike], RenderedPrompt]:
    """The function that shows each image that has boxes changed by them, the prompt and other images as they are."""

    def draw_up(example: ExampleLike) -> RenderedPrompt:
        random, images = Random(str(example["id"])), images_of(example)
        for number, image in enumerate(images):
            mine = [box["bbox"] for box in privilege(example, "boxes") if (box.get("image") or 0) == number]
            if mine:
                images[number] = change(image, mine, random)
        return RenderedPrompt(plain(example).messages, images)

    return draw_up


def no_prompt(example: ExampleLike) -> RenderedPrompt:
    """An empty user message: what the chat template itself says, and no image."""
    return RenderedPrompt([{"role": "user", "content": ""}], [])


def beside(example: ExampleLike, other: RenderedPrompt) -> RenderedPrompt:
    """With the last user message of another prompt, its text alone, said to be unrelated."""
    content = [message["content"] for message in other.messages if message["role"] == "user"][-1]
    return with_text(example, f"{UNRELATED}\n\n{content.replace(IMAGE_MARKER, '').strip()}")


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
