"""Replies of conversations as records: what was said before a reply is the prompt, and the reply is the answer.

A conversation is a list of turns, as LLaVA and ShareGPT have them, {"from": "human", "value": "What is this?"}, or of
chat messages, {"role": "user", "content": "What is this?"}.
"""

from __future__ import annotations

import reprlib
from array import array
from collections.abc import Mapping
from typing import Any

from dopd_vl.common.configuration import check_choice
from dopd_vl.common.errors import RecordError
from privileged.records.fields import chat_message, is_visible, item_list
from privileged.schema import Message
from privileged.sources.objects import Table
from privileged.sources.questions import record_id

SPEAKERS = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
}
"""The names that sets have for our roles. What a tool says, or is told, is in none of them."""

TURNS = ("each", "first", "last")
"""Which replies of a conversation become records."""

NO_TOOLS = (None, "", "[]", "null")


class ConversationTable:
    """A record for each reply in the conversations of a table, or for the first or the last of each."""

    def __init__(self, table: Table, turns: str):
        check_choice(turns, TURNS, "source.options.turns")
        self._table, self._turns = table, turns
        self.name, self.image_root = table.name, table.image_root
        # An item is a row and a reply in it; of those that cannot be read the reasons are kept.
        self._rows, self._replies, self._reasons = array("Q"), array("I"), dict[int, str]()
        for row, value in enumerate(table.values("prompt")):
            try:
                if isinstance(value, RecordError):
                    raise value
                count = len(_replies(conversation(value)))
            except RecordError as error:
                self._reasons[len(self._rows)] = str(error)
                count = 1
            chosen = {"each": range(count), "first": range(1), "last": range(count - 1, count)}[turns]
            self._rows.extend([row] * len(chosen))
            self._replies.extend(chosen)

    def fingerprint(self) -> str:
        return f"conversations:{self._turns}:{self._table.fingerprint()}"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        row, reply = self._rows[index], self._replies[index]
        if index in self._reasons:
            raise RecordError(self._reasons[index], f"{self.name}-row-{row}")
        raw = self._table[row]
        messages = conversation(raw.get("prompt"))
        place = _replies(messages)[reply]
        own = raw.get("id")  # which sets give to several conversations about a picture
        return {
            **raw,
            "id": record_id(own if isinstance(own, str | int) else self.name, row, reply),
            "prompt": [*_instructions(raw, messages), *messages[:place]],
            "answer": messages[place]["content"],
        }


def conversation(value: Any) -> list[Message]:
    """The messages of a conversation, in which user and assistant take turns, and the assistant replies at least once.

    >>> conversation([{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}])[1]
    {'role': 'assistant', 'content': '4'}

    Raises:
        RecordError: with the reason.
    """
    messages: list[Message] = []
    for number, turn in enumerate(item_list(value, "the conversation")):
        if not isinstance(turn, Mapping):
            raise RecordError(f"turn {number} must be a mapping with from and value, not {type(turn).__name__}")
        speaker = _only(turn, ("from", "role"), number)
        if not isinstance(speaker, str) or speaker.casefold() not in SPEAKERS:
            raise RecordError(f"turn {number} is from {reprlib.repr(speaker)}; known: {', '.join(SPEAKERS)}")
        content = _only(turn, ("value", "content"), number)
        message = chat_message({"role": SPEAKERS[speaker.casefold()], "content": content}, number)
        before = messages[-1]["role"] if messages else "system"
        if message["role"] == before != "system":
            raise RecordError(f"turns {number - 1} and {number} are both of the {before}")
        if message["role"] == "assistant" and before == "system":
            raise RecordError(f"turn {number} is of the assistant, and nothing was asked before it")
        messages.append(message)
    if not _replies(messages):
        raise RecordError("the conversation has no reply")
    return messages


def _replies(messages: list[Message]) -> list[int]:
    return [place for place, message in enumerate(messages) if message["role"] == "assistant"]


def _only(turn: Mapping[str, Any], names: tuple[str, str], number: int) -> Any:
    given = [turn[name] for name in names if turn.get(name) is not None]
    if len(given) != 1:
        raise RecordError(f"turn {number} must have one of {' and '.join(names)}, and has {len(given)}")
    return given[0]


def _instructions(raw: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The system message that some sets keep in a column beside the conversation. RecordError for tools beside it."""
    if raw.get("tools") not in (*NO_TOOLS, []):
        raise RecordError("the conversation is about tools, which no prompt here has")
    system = raw.get("system")
    if system is None or (isinstance(system, str) and not is_visible(system)):
        return []
    if messages[0]["role"] == "system":
        raise RecordError("the conversation has a system message, and a column 'system' beside it")
    return [chat_message({"role": "system", "content": system}, 0)]
