"""What a preparation works on: the source of its config, the order of the records, and what makes it this one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from .annotators.ahead import annotation_fingerprint
from .annotators.own import OwnAnnotator
from .config import PrepareConfig, SourceConfig
from .contamination import EvaluationQuestions
from .dataset import FORMAT
from .errors import ConfigError, PrivilegedError
from .outcomes import SourceFactory
from .source_cards import resolve_source
from .sources import SOURCES, Source


def with_source(
    config: PrepareConfig, extra_sources: Mapping[str, SourceFactory] | None
) -> tuple[PrepareConfig, Source, SourceFactory]:
    """The source, opened, and the configuration with its card's settings filled in."""
    if config.audit.decontaminate is not None:  # a file that cannot be used is told of here, and not by a worker
        EvaluationQuestions(config.audit.decontaminate, config.audit.decontaminate_ngram)
    settings, factory = resolve_source(config.source, {**SOURCES, **(extra_sources or {})})
    config = dataclasses.replace(config, source=settings)
    source = _open_source(config.source, factory)
    if len(source) == 0:
        raise ConfigError(f"source.options: the source {source.name!r} holds no records")
    return config, source, factory


def _open_source(settings: SourceConfig, factory: SourceFactory) -> Source:
    try:
        return factory(settings.options)
    except PrivilegedError:
        raise
    except ValueError as error:  # a factory from outside need not know our errors
        raise ConfigError(f"source.options: {error}") from error


def fingerprint(config: PrepareConfig, source: Source) -> str:
    """Of everything that decides what the dataset holds; not of how it is made (workers) or judged (the share)."""
    settings = dataclasses.asdict(config)
    for key in ("output", "workers", "max_rejected_share", "overwrite", "annotate", "part", "merge", "sample"):
        del settings[key]
    settings["audit"] = config.audit.fingerprint()
    parts = [FORMAT, source.name, source.fingerprint(), OwnAnnotator().fingerprint(), settings]
    if config.annotate is not None:
        parts.append(annotation_fingerprint(config.annotate))
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def order(count: int, config: PrepareConfig) -> Sequence[int]:
    """The records to prepare, by their numbers in the source."""
    indices: Sequence[int] = range(count)
    if config.shuffle:
        import numpy as np

        indices = np.random.default_rng(config.seed).permutation(count).tolist()
    return indices[: config.limit]
