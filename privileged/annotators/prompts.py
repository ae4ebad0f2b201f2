"""The prompts of annotation: one file a part and one a check, with places for the question and what belongs to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dopd_vl.common.errors import ConfigurationError, nearest
from privileged.annotators.settings import PART_NAMES
from privileged.schema import IMAGE_MARKER, Message

SHIPPED = Path(__file__).parents[1] / "prompts"
FILES = (*(f"{part}.md" for part in PART_NAMES), *(f"check_{part}.md" for part in PART_NAMES))
_PLACE = re.compile(r"\{\{(\w*)\}\}")


@dataclass(frozen=True)
class Prompt:
    """One prompt file: a system text, and a user text with {{places}}."""

    system: str
    user: str

    def fill(self, values: Mapping[str, str]) -> str:
        """The user text. Values are put in as they are: a place that a value holds stays text.

        >>> Prompt("", "Q: {{question}}").fill({"question": "What is {{answer}}?", "answer": "1"})
        'Q: What is {{answer}}?'
        """
        return _PLACE.sub(lambda match: values[match.group(1)], self.user)


def load_prompts(folder: str | None) -> dict[str, Prompt]:
    """All prompts by name ("hints", "check_hints", ...): those of `folder` where it has them, else the shipped ones."""
    chosen = {name: SHIPPED / name for name in FILES}
    if folder is not None:
        for path in sorted(Path(folder).glob("*.md")):
            if path.name not in FILES:
                raise ConfigurationError(f"annotate.prompts: {path} is no prompt's name; {nearest(path.name, FILES)}")
            chosen[path.name] = path
    return {name.removesuffix(".md"): _read(path, name.startswith("check_")) for name, path in chosen.items()}


def judge_prompt() -> Prompt:
    """How a judge is asked that gives no log-probabilities."""
    return _read(SHIPPED / "check_illusion.md", is_check=True)


def fingerprint(prompts: Mapping[str, Prompt]) -> str:
    return hashlib.sha256(repr(sorted(prompts.items())).encode()).hexdigest()


def _read(path: Path, is_check: bool) -> Prompt:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"annotate.prompts: {path} cannot be read ({error})") from error
    match = re.fullmatch(r"\s*--- system ---\n(.*?)\n--- user ---\n(.*)", text, re.DOTALL)
    if match is None:
        raise ConfigurationError(f"annotate.prompts: {path} must have the lines '--- system ---' and '--- user ---'")
    known = {"question", "answer", *(("candidate",) if is_check else ())}
    places = set(_PLACE.findall(match[2]))
    for place in sorted(places - known):
        raise ConfigurationError(f"annotate.prompts: {path} has the unknown place {place!r}; {nearest(place, known)}")
    for place in sorted({"question", *(("candidate",) if is_check else ())} - places):
        raise ConfigurationError(f"annotate.prompts: {path} has no place {{{{{place}}}}}")
    return Prompt(match[1].strip(), match[2].strip())


def question_text(prompt: Sequence[Message], images: int) -> str:
    """A conversation as the question of a prompt; its images stand before the text and are named by number.

    >>> question_text([{"role": "user", "content": "<image>How many?"}], 1)
    '(image 1) How many?'
    >>> question_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}], 0)
    'System: Be brief.\\n\\nUser: Hi?'
    """
    if len(prompt) == 1:
        text = prompt[0]["content"]
    else:
        text = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)
    for number in range(1, images + 1):
        text = text.replace(IMAGE_MARKER, f"(image {number}) ", 1)
    return text.strip()
