"""The settings of a preparation, as dataclasses that a YAML file fills."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from dopd_vl.common.configuration import check_between, check_choice
from dopd_vl.common.errors import ConfigurationError
from privileged.annotators.settings import AnnotateConfig
from privileged.audit.audit import AuditConfig
from privileged.records.images import ImageLimits
from privileged.rendering.boxes import BOX_FORMATS
from privileged.schema import TASKS
from privileged.sources.sources import SourceConfig

__all__ = ["PrepareConfig", "SourceConfig"]


@dataclass
class PrepareConfig:
    """Turn source records into a checked privileged data set.

    See docs/data.md.

    Args:
        source: Where the records come from.
        output: The folder to make.
        shard_size: A parquet file is made of so many source records. A killed run repeats at most the file that it was
            writing.
        max_rejected_share: The preparation ends with an error when more than this share of the records is set aside.
        limit: Only so many records are read. By default all are.
        shuffle: Take the records in an order drawn from `seed`; with `limit`, that is a random sample.
        seed: The shuffle and the sample are drawn from this number.
        workers: So many processes read and check records; 0 does it in this one. The result is the same.
        sample: So many records are shown in sample.html and sample.png, to look at; 0 makes neither.
        overwrite: Replace a data set that was prepared from other settings or another source.
        audit: What the audit does with what it finds.
        images: Which images are accepted.
        annotate: Who makes the privileged parts that the source lacks. By default none are made.
        part: One part of several, e.g. "2/4", is prepared into a folder beside the output; `merge` joins them. By
            default all is prepared.
        merge: Join the parts that lie beside the output. The result is that of a single run.
        push_to_hub: The repository of the hub, "user/name", that the finished data set is pushed to; it is made private
            if it is new (docs/hub.md). By default nothing is pushed.
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
    push_to_hub: str | None = None

    def check(self) -> None:
        """Raise ConfigurationError, naming the key, when a value cannot be used."""
        if not self.output:
            raise ConfigurationError("output: name the folder to make")
        for key, value, low, high in (
            ("shard_size", self.shard_size, 1, math.inf),
            ("max_rejected_share", self.max_rejected_share, 0, 1),
            ("limit", self.limit, 1, math.inf),
            ("sample", self.sample, 0, 1000),
            ("workers", self.workers, 0, math.inf),
            ("seed", self.seed, 0, math.inf),
            ("images.max_pixels", self.images.max_pixels, 1, math.inf),
            ("images.max_bytes", self.images.max_bytes, 1, math.inf),
            ("images.max_aspect", self.images.max_aspect, 1, math.inf),
        ):
            check_between(value, low, high, key)
        if self.source.kind is None and self.source.card is None:
            raise ConfigurationError("source.kind: missing; name a kind of source, or a card")
        check_choice(self.source.box_format, BOX_FORMATS, "source.box_format")
        check_choice(self.source.default_task, TASKS, "source.default_task")
        self.audit.check()
        if self.annotate is not None:
            self.annotate.check()
            if self.part is not None and self.annotate.coordinates == "auto":
                raise ConfigurationError("annotate.coordinates: auto may come out differently for each part; name them")
        if self.part is not None and self.merge:
            raise ConfigurationError("part: a part is prepared, or all are merged; not both in one run")
        if self.part is not None and self.push_to_hub is not None:
            raise ConfigurationError("push_to_hub: a part is no data set yet; give it where the parts are merged")
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
