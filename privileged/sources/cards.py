"""Source cards: how a known data set is read, in one YAML file, so that a config need only name it.

    source: {card: dapo-math-17k, options: {path: downloads/DAPO-Math-17k}}

A card says where the set comes from and under which licence, which of its columns fills which of ours, which small
repairs they need (`transforms.TRANSFORMS`), and which verifier scores the answers. docs/sources.md shows how to
write one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dopd_vl.common.configuration import check_choice, existing_path, read_yaml, settings_of
from dopd_vl.common.digests import digest_json
from dopd_vl.common.errors import ConfigurationError, RecordError, nearest
from dopd_vl.common.resources import shipped
from privileged.audit.audit import Tally
from privileged.rendering.boxes import BOX_FORMATS
from privileged.schema import TASKS
from privileged.sources.sources import (
    INCIDENTAL,
    MAPPABLE,
    CountingSource,
    ImageFolderSource,
    Source,
    SourceConfig,
    SourceFactory,
    check_columns,
)
from privileged.sources.transforms import read_transform

COLUMN_KINDS = ("jsonl", "dataset", "hub")
"""Kinds of sources that take columns, and so can read one and the same set."""


@dataclass
class SourceCard:
    """One data set.

    Args:
        title: Its name in full.
        homepage: Where it is described.
        licence: Its licence, or "unknown".
        found_in: Where licence and revision were found.
        schema_checked: What the columns were checked against, and what could not be checked.
        kind: The kind of source that reads it.
        revision: The commit that the columns are of, and that the kind `hub` loads; null when unknown.
        hub: What the kind `hub` loads: id and, where there are several, config and split.
        options: Options of `kind` that a config need not repeat.
        columns: Ours: theirs, as for the option `columns`. A config's own `columns` go before.
        transforms: What is done to a column's values, in order, e.g. `{column: prompt, do: strip_prefix, text: "Q:"}`.
        prompt_template: What is put around the prompt at last; `{value}` stands for it.
        task: The verifier of records that name none.
        box_format: How boxes are given.
    """

    title: str
    homepage: str
    licence: str
    found_in: str
    schema_checked: str
    kind: str
    revision: str | None = None
    hub: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    transforms: list[Any] = field(default_factory=list)
    prompt_template: str | None = None
    task: str | None = None
    box_format: str | None = None

    def steps(self, where: str) -> list[tuple[str, Callable[[Any], Any]]]:
        """The transforms as functions, the prompt's template last."""
        entries = list(self.transforms)
        if self.prompt_template is not None:
            entries.append({"column": "prompt", "do": "template", "text": self.prompt_template})
        steps = [read_transform(entry, f"{where}: transforms[{number}]") for number, entry in enumerate(entries)]
        for column, _ in steps:
            check_choice(column, MAPPABLE, f"{where}: transforms: the column")
        return steps


def find_card(name: str) -> Path:
    """A card by its name among those that ship, or by its path (which ends in .yaml)."""
    if name.endswith((".yaml", ".yml")):
        return existing_path(name, "source.card", "file")
    cards = {path.stem: path for path in sorted(shipped("data/sources").glob("*.yaml"))}
    if name not in cards:
        raise ConfigurationError(
            f"source.card: {name!r} is unknown (one of your own is named by its path, which ends in .yaml); "
            f"{nearest(name, cards)}"
        )
    return cards[name]


def read_card(path: Path) -> SourceCard:
    """A card, checked; ConfigurationError names the file and the key."""
    where = f"source.card: {path}"
    card = settings_of(SourceCard, read_yaml(path, where), where)
    check_choice(card.task, TASKS, f"{where}.task")
    check_choice(card.box_format, BOX_FORMATS, f"{where}.box_format")
    check_columns(card.columns, f"{where}.columns")
    for key in card.hub:
        check_choice(key, ("id", "config", "split"), f"{where}.hub: the key")
    card.steps(where)
    return card


def prompt_template(settings: SourceConfig) -> str | None:
    """What the card of a source puts around each prompt, if it has one."""
    return None if settings.card is None else read_card(find_card(settings.card)).prompt_template


def resolve_source(
    settings: SourceConfig, factories: Mapping[str, SourceFactory]
) -> tuple[SourceConfig, SourceFactory]:
    """The settings with what their card adds, and the factory that makes the source from their options."""
    card, path = None, None
    own: Mapping[str, Any] = {}
    if settings.card is not None:
        path = find_card(settings.card)
        card = read_card(path)
        given = settings.options
        settings = _with_card(settings, card, path)
        own = given.get("columns", {})
    kind = settings.kind or ""
    check_choice(kind, factories, "source.kind")
    if card is None or path is None:
        return settings, factories[kind]
    optional = [target for target in INCIDENTAL if target not in own] if kind in COLUMN_KINDS else []
    return settings, partial(CardSource, card=card, name=path.stem, factory=factories[kind], optional=optional)


def _with_card(settings: SourceConfig, card: SourceCard, path: Path) -> SourceConfig:
    kind = settings.kind or card.kind
    if kind != card.kind and not (kind in COLUMN_KINDS and card.kind in COLUMN_KINDS):
        raise ConfigurationError(f"source.kind: the card {path.stem} is read as {card.kind!r}, and not as {kind!r}")
    shared = ("turns", "questions", "class_names") if kind in ("dataset", "hub") else ("turns",)
    options: dict[str, Any] = {key: card.options[key] for key in card.options if kind == card.kind or key in shared}
    if kind == "hub":
        if card.kind != "hub" and not card.hub:
            raise ConfigurationError(f"source.kind: the card {path.stem} names no data set on the hub")
        options |= card.hub | ({"revision": card.revision} if card.revision is not None else {})
    if not isinstance(settings.options, Mapping):
        raise ConfigurationError(f"source.options: must be a mapping, not {type(settings.options).__name__}")
    options |= settings.options
    if kind in COLUMN_KINDS:
        own = settings.options.get("columns", {})
        if not isinstance(own, Mapping):
            raise ConfigurationError(f"source.options.columns: must be a mapping, not {own!r}")
        options["columns"] = {**card.columns, **own}
    return dataclasses.replace(
        settings,
        kind=kind,
        options=options,
        name=settings.name or path.stem,
        default_task=settings.default_task or card.task,
        box_format=card.box_format or settings.box_format,
    )


class CardSource:
    """The records of a source, repaired as its card says."""

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        card: SourceCard,
        name: str,
        factory: SourceFactory,
        optional: Collection[str] = (),
    ):
        self.name = name
        self._inner: Source = factory(options, optional=optional) if optional else factory(options)
        self._steps = card.steps(f"source.card: {name}")
        self._digest = digest_json([card.transforms, card.prompt_template])
        self.image_root = self._inner.image_root if isinstance(self._inner, ImageFolderSource) else None
        self.found = self._inner.found if isinstance(self._inner, CountingSource) else Tally()

    def fingerprint(self) -> str:
        return f"card:{self._digest}:{self._inner.fingerprint()}"

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        raw = dict(self._inner[index])
        for column, apply in self._steps:
            try:
                raw[column] = apply(raw.get(column))
            except RecordError as error:
                raise RecordError(f"{column}: {error}") from error
        return raw
