"""The settings of a preparation, as dataclasses that a YAML file fills."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .annotators.settings import AnnotateConfig
from .audit import AuditConfig
from .boxes import BOX_FORMATS
from .errors import ConfigError, nearest
from .images import ImageLimits
from .schema import TASKS

Options = TypeVar("Options")


@dataclass
class SourceConfig:
    """Where the records come from: a kind of source, or a card that knows how a data set is read.

    Args:
        kind: "jsonl", "dataset", "hub", "coco", "yolo", "voc" or "nano". With a card: in place of the card's own kind.
        options: What this kind needs; see `sources.py` and docs/data.md.
        name: Value of the column `source` for records that have none. Default: the source's own name.
        default_task: The verifier for records that name none: exact, number, choice, math, code or open.
        box_format: How boxes are given: xyxy or xywh in pixels, xyxy_1 or xywh_1 as shares of the image, or xyxy_1000.
        card: A source card: one of those that ship (docs/sources.md), or the path of a YAML file.
    """

    kind: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    default_task: str | None = None
    box_format: str = "xyxy"
    card: str | None = None


@dataclass
class PrepareConfig:
    """A preparation: source records in, a privileged dataset out.

    Args:
        source: Where the records come from.
        output: The folder to make.
        shard_size: Source records to a parquet file. A killed run repeats at most the file that it was writing.
        max_rejected_share: More rejected records than this share (0 to 1) is an error.
        limit: Only so many records.
        shuffle: Take the records in an order drawn from `seed`; with `limit`, a random sample.
        seed: Seed of the shuffle.
        workers: Processes that read and check records; 0 does it in this one. The result is the same.
        sample: Records shown in sample.html and sample.png, to look at; 0 for none.
        overwrite: Replace a dataset that was prepared from other settings or another source.
        audit: What the audit does with what it finds.
        images: Which images are accepted.
        annotate: Who makes the privileged parts that the source lacks; null makes none.
        part: Prepare one part of several, e.g. "2/4", into a folder beside the output; `merge` joins them.
        merge: Join the parts that lie beside the output. The result is that of a single run.
    """

    source: SourceConfig
    output: str
    shard_size: int = 1000
    max_rejected_share: float = 0.05
    limit: int | None = None
    shuffle: bool = False
    seed: int = 0
    workers: int = 0
    sample: int = 24
    overwrite: bool = False
    audit: AuditConfig = field(default_factory=AuditConfig)
    images: ImageLimits = field(default_factory=ImageLimits)
    annotate: AnnotateConfig | None = None
    part: str | None = None
    merge: bool = False

    def check(self) -> None:
        """Raise ConfigError, naming the key, when a value cannot be used."""
        if not self.output:
            raise ConfigError("output: name the folder to make")
        if self.shard_size < 1:
            raise ConfigError(f"shard_size: {self.shard_size} is less than 1")
        if not 0 <= self.max_rejected_share <= 1:
            raise ConfigError(f"max_rejected_share: {self.max_rejected_share} is not between 0 and 1")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit: {self.limit} is less than 1")
        if not 0 <= self.sample <= 1000:
            raise ConfigError(f"sample: {self.sample} is not between 0 and 1000")
        if self.workers < 0:
            raise ConfigError(f"workers: {self.workers} is negative")
        if self.seed < 0:
            raise ConfigError(f"seed: {self.seed} is negative")
        for key in ("max_pixels", "max_bytes"):
            if getattr(self.images, key) < 1:
                raise ConfigError(f"images.{key}: {getattr(self.images, key)} is less than 1")
        if self.images.max_aspect < 1:
            raise ConfigError(f"images.max_aspect: {self.images.max_aspect} is less than 1")
        if not self.images.url_seconds > 0:
            raise ConfigError(f"images.url_seconds: {self.images.url_seconds} is not above 0")
        if self.source.kind is None and self.source.card is None:
            raise ConfigError("source.kind: missing; name a kind of source, or a card")
        check_choice(self.source.box_format, BOX_FORMATS, "source.box_format")
        if self.source.default_task is not None:
            check_choice(self.source.default_task, TASKS, "source.default_task")
        self.audit.check()
        if self.annotate is not None:
            self.annotate.check()
        if self.part is not None and self.merge:
            raise ConfigError("part: a part is prepared, or all are merged; not both in one run")
        self.part_range(1)

    def part_range(self, total: int) -> tuple[int, int]:
        """Which of `total` records, from and to, this run prepares."""
        if self.part is None:
            return 0, total
        match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", self.part)
        if match is None or int(match[1]) > int(match[2]):
            raise ConfigError(f"part: {self.part!r} must have the form 2/4: the second of four parts")
        number, parts = int(match[1]), int(match[2])
        return total * (number - 1) // parts, total * number // parts


def check_choice(value: str, known: tuple[str, ...], key: str) -> None:
    if value not in known:
        raise ConfigError(f"{key}: {value!r} is unknown; {nearest(value, known)}")


def read_options(options: Mapping[str, Any], cls: type[Options], where: str = "source.options") -> Options:
    """A source's options as its own dataclass, names and plain types checked."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}: must be a mapping, not {type(options).__name__}")
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in options.items():
        if key not in fields:
            raise ConfigError(f"{where}.{key}: unknown; {nearest(str(key), fields)}")
        _check_type(value, str(fields[key].type), f"{where}.{key}")
    for item in fields.values():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.name not in options:
            raise ConfigError(f"{where}.{item.name}: missing")
    return cls(**options)


def read_call(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Callable[[Any], Any]:
    """A function of one value with its other arguments fixed, their names and plain types checked."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    known = {parameter.name: parameter for parameter in parameters}
    for key, value in arguments.items():
        if key not in known:
            raise ConfigError(f"{where}.{key}: unknown; {nearest(str(key), [*known, 'column', 'do'])}")
        _check_type(value, str(known[key].annotation), f"{where}.{key}")
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise ConfigError(f"{where}.{parameter.name}: missing")
    return functools.partial(function, **arguments)


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "list": (list, tuple),
    "dict": (dict,),
    "None": (type(None),),
}


def _check_type(value: Any, annotation: str, where: str) -> None:
    names = [part.strip().partition("[")[0] for part in annotation.split("|")]
    allowed = tuple(kind for name in names for kind in _TYPES[name])
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise ConfigError(f"{where}: must be {' or '.join(names)}, not {value!r}")
