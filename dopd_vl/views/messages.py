"""Chat messages between the data set's form (text with image markers) and the chat template's (lists of parts)."""

from collections.abc import Mapping, Sequence
from typing import Any

IMAGE_MARKER = "<image>"


def split_content(messages: Sequence[Mapping[str, Any]], image_count: int) -> list[dict[str, Any]]:
    """Turn each message's text into parts, an `{"type": "image"}` part at every marker.

    Without any marker, all images go before the text of the first user message.

    >>> split_content([{"role": "user", "content": "Compare <image> and <image>."}], 2)[0]["content"][:2]
    [{'type': 'text', 'text': 'Compare '}, {'type': 'image'}]

    Raises:
        ValueError: there are markers, but not as many as images; or images, but no user message to carry them.
    """
    markers = sum(message["content"].count(IMAGE_MARKER) for message in messages)
    if markers not in (0, image_count):
        raise ValueError(f"its prompt has {markers} {IMAGE_MARKER} marker(s) for {image_count} image(s)")
    unplaced = image_count - markers
    result: list[dict[str, Any]] = []
    for message in messages:
        parts: list[dict[str, Any]] = []
        if unplaced and message["role"] == "user":
            parts += [{"type": "image"}] * unplaced
            unplaced = 0
        for position, text in enumerate(message["content"].split(IMAGE_MARKER)):
            if position:
                parts.append({"type": "image"})
            if text:
                parts.append({"type": "text", "text": text})
        result.append({"role": message["role"], "content": parts})
    if unplaced:
        raise ValueError(f"it has {unplaced} image(s) but no user message to show them in")
    return result
