"""What a run began with: its data, column by column, and its models, file by file.

A run that goes on is compared with it, so that a change is refused by name and not trained on.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig

from dopd_vl.common.digests import dataset_parts, model_parts

FORMAT = "run-fingerprint-1"

Fingerprint = dict[str, Any]
"""Key of the configuration -> {part: its digest or count}"""


def fingerprint_of(
    datasets: Mapping[str, Dataset],
    models: Mapping[str, tuple[str, PreTrainedConfig]],
    processes: int,
    served: Mapping[str, str] = MappingProxyType({}),
) -> Fingerprint:
    """Of data sets by key ("data.train"), of models by key ("model.student") with their names and configurations.

    `processes`: how many train together; with another number a step has other rollouts. `served`: the names that
    servers give the models that they run, by key; where they run is no matter.
    """
    return {
        "format": FORMAT,
        **{key: dataset_parts(dataset) for key, dataset in datasets.items()},
        **{key: model_parts(name, config) for key, (name, config) in models.items()},
        **{key: {"served model": name} for key, name in served.items()},
        "the launch": {"number of processes": processes},
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What changed, in words that begin with its key; None where nothing did."""
    told = []
    for key in sorted({*before, *now} - {"format"}):
        old, new = before.get(key, {}), now.get(key, {})
        changed = [part for part in sorted({*old, *new}) if old.get(part) != new.get(part)]
        counts = [part for part in changed if part.startswith("number")]
        if counts:
            told.append(f"{key}: the {counts[0]} was {old.get(counts[0])} and is {new.get(counts[0])} now")
        elif changed:
            told.append(f"{key}: other content now ({', '.join(_told(part, old, new) for part in changed)})")
    return "; ".join(told) or None


def _told(part: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return f"{part} {'changed' if part in old and part in new else 'is new' if part in new else 'is gone'}"
