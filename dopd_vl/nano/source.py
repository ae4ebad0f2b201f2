"""The nano worlds as a source of records, for `dopd-vl prepare` and for supervised training."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dopd_vl.common.configuration import settings_of
from dopd_vl.common.resources import nano_data_folder
from dopd_vl.nano import text_tasks, vision_tasks
from dopd_vl.nano.digits import Split

WORLD_VERSION = 1  # raise it when the same options make other records


@dataclass(frozen=True)
class World:
    """`record` takes (index, split, seed, tasks) and returns a raw record and its reference response."""

    tasks: Mapping[str, Any]
    record: Callable[..., tuple[dict[str, Any], str]]
    default_variant: str


WORLDS: dict[str, World] = {
    "vision": World(vision_tasks.VISION_TASKS, vision_tasks.record_and_response, "box_label"),
    "text": World(text_tasks.TEXT_TASKS, text_tasks.record_and_response, "hints"),
}


@dataclass(frozen=True)
class NanoOptions:
    """Which records a nano source has."""

    world: Literal["vision", "text"] = "vision"
    split: Split = "train"
    size: int = 1000
    seed: int = 0
    tasks: list[str] | None = None
    """kinds of task, in turn; all of the world's by default"""

    def __post_init__(self) -> None:
        for name, value, least in (("size", self.size, 1), ("seed", self.seed, 0)):
            if value < least:
                raise ValueError(f"{name} {value!r}; use a whole number of at least {least}")
        known = WORLDS[self.world].tasks
        if self.tasks is not None and (not self.tasks or any(task not in known for task in self.tasks)):
            raise ValueError(f"tasks {self.tasks!r}; use a list of some of {', '.join(known)}")


class NanoSource(Sequence[dict[str, Any]]):
    """Records made on demand by `NanoOptions`: record i of the same options is always the same.

    >>> NanoSource({"world": "text", "size": 8})[0]["id"]
    'nano-text-train-0-000000-steps'

    Raises:
        ConfigurationError: an option that is unknown or has a value that cannot be; it names the option.
    """

    def __init__(self, options: Mapping[str, Any] | None = None):
        self.options = asdict(settings_of(NanoOptions, options or {}, "source.options"))
        self.name = f"nano-{self.options['world']}-{self.options['split']}"
        self.world = WORLDS[self.options["world"]]

    def fingerprint(self) -> str:
        """Changes with the options, the world's version and the digits."""
        digest = hashlib.sha256(json.dumps([WORLD_VERSION, self.options], sort_keys=True).encode())
        for name in ("digits.json", "digits.png"):
            digest.update((nano_data_folder() / "digits" / name).read_bytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self.options["size"]

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.world.record(*self._place(index))[0]

    def record_and_response(self, index: int) -> tuple[dict[str, Any], str]:
        """A record with the reference response, which no privileged data set carries: students make their own."""
        return self.world.record(*self._place(index))

    def _place(self, index: int) -> tuple[int, Any, int, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, there is no record {index}")
        return index % len(self), self.options["split"], self.options["seed"], self.options["tasks"]
