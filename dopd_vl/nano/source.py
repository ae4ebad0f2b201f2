"""The nano worlds as a source of records, for `dopd-vl prepare` and for supervised training."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dopd_vl.common.resources import nano_data_folder
from dopd_vl.nano import text_tasks, vision_tasks
from dopd_vl.nano.digits import SPLITS

OPTIONS: dict[str, Any] = {"world": "vision", "split": "train", "size": 1000, "seed": 0, "tasks": None}
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


class NanoSource(Sequence[dict[str, Any]]):
    """Records made on demand: record i of the same options is always the same.

    Options: `world` ("vision" or "text"), `split` ("train" or "heldout"), `size`, `seed`, and `tasks`, a list of task
    kinds (default: all of the world's, in turn).

    >>> NanoSource({"world": "text", "size": 8})[0]["id"]
    'nano-text-train-0-000000-steps'

    Raises:
        ValueError: an option that is unknown or has a value that cannot be; it names the option.
    """

    def __init__(self, options: Mapping[str, Any] | None = None):
        given = dict(options or {})
        unknown = sorted(set(given) - set(OPTIONS))
        if unknown:
            raise ValueError(f"nano source: unknown option {unknown[0]!r}; it takes {', '.join(OPTIONS)}")
        self.options = {**OPTIONS, **given}
        _check(self.options)
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


def _check(options: Mapping[str, Any]) -> None:
    for key, allowed in (("world", tuple(WORLDS)), ("split", SPLITS)):
        if options[key] not in allowed:
            raise ValueError(f"nano source: {key} {options[key]!r}; use one of {', '.join(allowed)}")
    for key, least in (("size", 1), ("seed", 0)):
        value = options[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"nano source: {key} {value!r}; use a whole number of at least {least}")
    tasks, known = options["tasks"], WORLDS[options["world"]].tasks
    if tasks is None:
        return
    if not isinstance(tasks, list) or not tasks or any(task not in known for task in tasks):
        raise ValueError(f"nano source: tasks {tasks!r}; use a list of some of {', '.join(known)}")
