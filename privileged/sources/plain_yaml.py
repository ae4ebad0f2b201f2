"""YAML that comes with a data set, which nobody here wrote: no aliases, and no more than names and patterns take."""

from __future__ import annotations

from typing import Any

import yaml

MAX_YAML = 1024 * 1024
"""Characters of a text. Each entry takes a thousand times its length in memory while it is read."""


class PlainLoader(yaml.SafeLoader):
    """Refuses aliases: nested, a few hundred characters of them stand for gigabytes."""

    def __init__(self, text: str):
        if len(text) > MAX_YAML:
            raise ValueError(f"it has more than {MAX_YAML} characters")
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"it has the alias *{self.peek_event().anchor[:20]}; write out what it stands for")
        return super().compose_node(parent, index)
