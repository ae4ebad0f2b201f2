"""Privileged text: how hints, captions and answers are written after a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from .schema import IMAGE_MARKER, Message


def numbered(steps: Sequence[str]) -> str:
    r"""Steps as a numbered list.

    >>> numbered(["Find the digits.", "Add them."])
    '1. Find the digits.\n2. Add them.'
    """
    return "\n".join(f"{number}. {step.strip()}" for number, step in enumerate(steps, start=1))


def hints_block(steps: Sequence[str]) -> str:
    return f"Hints:\n{numbered(steps)}"


def hint_line(hint: str) -> str:
    return f"Hint: {hint.strip()}"


def answer_line(answer: str) -> str:
    return f"The final answer is: {answer.strip()}"


def caption_line(caption: str) -> str:
    return f"Image description: {caption.strip()}"


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
