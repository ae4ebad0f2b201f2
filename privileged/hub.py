"""Rows of a dataset on the Hugging Face hub. Nothing is downloaded unless a config names the dataset's id."""

from __future__ import annotations

from typing import Any

from .errors import ConfigError
from .tables import pick_split


class HubRows:
    """A dataset loaded by `datasets.load_dataset`, memory-mapped from its cache. No code of it is run."""

    def __init__(self, dataset_id: str, revision: str | None, config: str | None, split: str | None):
        from datasets import DatasetDict, load_dataset

        where = f"source.options.id: {dataset_id!r}"
        if dataset_id.count("/") != 1:  # load_dataset would take a local folder, or a builder such as "json"
            raise ConfigError(f"{where} is no hub id (owner/name); for files on this machine use the kind dataset")
        try:
            loaded = load_dataset(dataset_id, name=config, revision=revision)
        except Exception as error:  # no network, no such dataset or revision, files that do not fit together, ...
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ConfigError(
                f"{where} could not be loaded ({reason}); without a network, download it elsewhere and use the kind "
                "dataset with its path"
            ) from error
        if isinstance(loaded, DatasetDict):
            loaded = pick_split(loaded, split)
        self._fingerprint = loaded._fingerprint
        self._rows = loaded.with_format("arrow")
        self.columns = list(loaded.column_names)

    def fingerprint(self) -> str:
        return f"hub:{self._fingerprint}:{len(self)}"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self._rows[index : index + 1].to_pylist()[0]
        return row
