"""The rollouts of one optimizer step on one rank: what every policy sees, and which examples are passed over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dopd_vl.core import Source
from dopd_vl.training.config import DEFAULT_VARIANT
from dopd_vl.views import View, ViewProcessor
from privileged import VARIANTS

SIBLING_VIEW = "sibling"
SOLUTION = "A correct solution to this problem:\n{response}"
"""How a right rollout of the same prompt is shown."""


@dataclass(frozen=True)
class Refusal:
    """An example that was passed over, and why."""

    id: str
    reason: str


def resolve_variant(example: Mapping[str, Any], variant: str) -> str:
    """The named variant, or, for "default", the one that fits the example."""
    if variant != DEFAULT_VARIANT:
        return variant
    return "hints" if VARIANTS["box_label"].missing(example) else "box_label"


class ViewRenderer:
    """Renders what each source sees; siblings of one prompt share their views."""

    def __init__(self, views: ViewProcessor, variants: Mapping[str, str]):
        """`variants` maps a policy to the variant that its privileged view shows."""
        unknown = [name for name in variants.values() if name != DEFAULT_VARIANT and name not in VARIANTS]
        if unknown:
            raise ValueError(
                f"unknown variant {unknown[0]!r}, expected one of {', '.join([DEFAULT_VARIANT, *VARIANTS])}"
            )
        self.views = views
        self.variants = variants

    def render(self, example: Mapping[str, Any], sources: Sequence[Source]) -> dict[Source, View]:
        """One view per source.

        Raises:
            ValueError: the example cannot be shown to one of them; the message says which example and why.
        """
        by_variant: dict[str, View] = {}
        result = {}
        for source in sources:
            if source.view == "privileged":
                variant = resolve_variant(example, self.variants[source.policy])
            else:
                variant = "none" if source.view == "plain" else source.view
            if variant not in by_variant:
                by_variant[variant] = self.views.view(example, variant)
            result[source] = by_variant[variant]
        return result


@dataclass(frozen=True)
class RenderedBatch:
    """Views per source, one entry a rollout."""

    views: dict[Source, list[View]]
    usable: Tensor
    """`[B]` bool: false for a rollout whose example was refused; another example's views stand in its place"""
    refusals: list[Refusal]


def render_batch(
    renderer: ViewRenderer, examples: Sequence[Mapping[str, Any]], sources: Sequence[Source], siblings: int
) -> RenderedBatch:
    """Render a generation batch in which every run of `siblings` examples is one prompt.

    An example that cannot be shown keeps its place, so that ranks stay in step, but is filled with another's views and
    marked unusable: it is generated for and then neither scored nor taught.

    Raises:
        ValueError: no example of the batch can be shown; the message holds the first reason.
    """
    rendered: list[dict[Source, View] | None] = []
    refusals: list[Refusal] = []
    for example in examples[::siblings]:
        try:
            rendered.append(renderer.render(example, sources))
        except ValueError as error:
            rendered.append(None)
            refusals.append(Refusal(str(example.get("id")), str(error)))
    filler = next((views for views in rendered if views is not None), None)
    if filler is None:
        raise ValueError(f"no example of the batch can be used; the first: {refusals[0].reason}")
    per_rollout = [views for views in rendered for _ in range(siblings)]
    return RenderedBatch(
        views={source: [(views or filler)[source] for views in per_rollout] for source in sources},
        usable=torch.tensor([views is not None for views in per_rollout]),
        refusals=refusals,
    )


def pad_responses(responses: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids `[B, N]` int64 and mask `[B, N]` bool."""
    length = max(len(ids) for ids in responses)
    ids = torch.tensor([list(r) + [fill] * (length - len(r)) for r in responses], dtype=torch.long).reshape(-1, length)
    mask = torch.arange(length)[None] < torch.tensor([len(r) for r in responses])[:, None]
    return ids, mask


def siblings_shown(verdicts: Sequence[bool | None], siblings: int) -> list[int | None]:
    """For each rollout the next right one of the same prompt, going round, or None where there is no other."""
    shown: list[int | None] = []
    for b in range(len(verdicts)):
        first = b - b % siblings
        others = [first + (b - first + step) % siblings for step in range(1, siblings)]
        shown.append(next((other for other in others if verdicts[other]), None))
    return shown


def render_siblings(
    renderer: ViewRenderer,
    examples: Sequence[Mapping[str, Any]],
    plain: Sequence[View],
    responses: Sequence[str],
    shown: Sequence[int | None],
) -> tuple[list[View], list[int | None]]:
    """Views of each prompt with a right rollout of it, and which rollout that is.

    Where there is none, or its view cannot be made (too long, a control token), the plain view stands in its place.
    """
    views, used = [], []
    for example, view, other in zip(examples, plain, shown, strict=True):
        if other is not None:
            try:
                view = renderer.views.view(example, addition=SOLUTION.format(response=responses[other]))
            except ValueError:
                other = None
        views.append(view)
        used.append(other)
    return views, used
