"""The settings of a preparation, as dataclasses that a YAML file fills."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dopd_vl.common.configuration import check_choice
from dopd_vl.common.errors import ConfigurationError
from privileged.annotators.settings import AnnotateConfig
from privileged.audit.audit import AuditConfig
from privileged.records.images import ImageLimits
from privileged.rendering.boxes import BOX_FORMATS
from privileged.schema import TASKS

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
        """Raise ConfigurationError, naming the key, when a value cannot be used."""
        if not self.output:
            raise ConfigurationError("output: name the folder to make")
        if self.shard_size < 1:
            raise ConfigurationError(f"shard_size: {self.shard_size} is less than 1")
        if not 0 <= self.max_rejected_share <= 1:
            raise ConfigurationError(f"max_rejected_share: {self.max_rejected_share} is not between 0 and 1")
        if self.limit is not None and self.limit < 1:
            raise ConfigurationError(f"limit: {self.limit} is less than 1")
        if not 0 <= self.sample <= 1000:
            raise ConfigurationError(f"sample: {self.sample} is not between 0 and 1000")
        if self.workers < 0:
            raise ConfigurationError(f"workers: {self.workers} is negative")
        if self.seed < 0:
            raise ConfigurationError(f"seed: {self.seed} is negative")
        for key in ("max_pixels", "max_bytes"):
            if getattr(self.images, key) < 1:
                raise ConfigurationError(f"images.{key}: {getattr(self.images, key)} is less than 1")
        if self.images.max_aspect < 1:
            raise ConfigurationError(f"images.max_aspect: {self.images.max_aspect} is less than 1")
        if not self.images.url_seconds > 0:
            raise ConfigurationError(f"images.url_seconds: {self.images.url_seconds} is not above 0")
        if self.source.kind is None and self.source.card is None:
            raise ConfigurationError("source.kind: missing; name a kind of source, or a card")
        check_choice(self.source.box_format, BOX_FORMATS, "source.box_format")
        if self.source.default_task is not None:
            check_choice(self.source.default_task, TASKS, "source.default_task")
        self.audit.check()
        if self.annotate is not None:
            self.annotate.check()
        if self.part is not None and self.merge:
            raise ConfigurationError("part: a part is prepared, or all are merged; not both in one run")
        self.part_range(1)

    def part_range(self, total: int) -> tuple[int, int]:
        """Which of `total` records, from and to, this run prepares."""
        if self.part is None:
            return 0, total
        match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", self.part)
        if match is None or int(match[1]) > int(match[2]):
            raise ConfigurationError(f"part: {self.part!r} must have the form 2/4: the second of four parts")
        number, parts = int(match[1]), int(match[2])
        return total * (number - 1) // parts, total * number // parts


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
        raise ConfigurationError(f"{where}: must be {' or '.join(names)}, not {value!r}")
