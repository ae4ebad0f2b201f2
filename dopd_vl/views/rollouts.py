"""The rollouts of one optimizer step on one rank: what every policy sees, and which examples are passed over."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from dopd_vl.common.errors import nearest
from dopd_vl.core import Source
from dopd_vl.objectives.base import Lesson
from dopd_vl.objectives.common import PLAIN_STUDENT
from dopd_vl.train_config import DEFAULT_VARIANT
from dopd_vl.views.base import Refusal, Request, View, ViewProcessor
from privileged import VARIANTS
from privileged.records.images import load_image
from privileged.rendering.render import privilege
from privileged.rendering.variants import OTHER, OTHER_PREFIX

SIBLING_VIEW, OWN_VIEW = "sibling", "own"
ROLLOUT_VIEWS = {
    SIBLING_VIEW: "A correct solution to this problem:\n{response}",
    OWN_VIEW: "A solution to this problem, which may be right or wrong:\n{response}",
}
"""Views of a prompt with a rollout of it, a right sibling or the rollout itself, and how that is said."""
DONORS = 32
"""Examples that are looked at for one that can be laid beside another."""


def check_variant(name: str) -> None:
    """Raises: ValueError: there is no such variant, and it is not "default"."""
    if name != DEFAULT_VARIANT and name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}, {nearest(name, [DEFAULT_VARIANT, *VARIANTS])}")


def resolve_variant(example: Mapping[str, Any], variant: str) -> str:
    """The named variant, or, for "default", the one that fits the example."""
    if variant != DEFAULT_VARIANT:
        return variant
    return "hints" if VARIANTS["box_label"].missing(example) else "box_label"


class ViewRenderer:
    """Renders what each source sees; the rollouts of one prompt share their views."""

    def __init__(
        self,
        views: ViewProcessor,
        variants: Mapping[str, str],
        student_variant: str = "none",
        others: Sequence[Mapping[str, Any]] = (),
        of_policies: Mapping[str, ViewProcessor] | None = None,
    ):
        """`variants` maps a policy to the variant that its privileged view shows; the student that learns sees
        `student_variant`. What is shown of another example is one of `others`. `of_policies` has the processor of those
        policies that are shown images of other sizes than the student is."""
        for name in (*variants.values(), student_variant):
            check_variant(name)
        self.others = others
        self.views = views
        self.of_policies = of_policies or {}
        self.variants = variants
        self.student_variant = student_variant

    def render(
        self, examples: Sequence[Mapping[str, Any]], sources: Sequence[Source]
    ) -> list[dict[Source, View] | ValueError]:
        """One view per source for each example, or why the example cannot be shown to one of them."""
        variants = [{source: self.variant_of(example, source) for source in sources} for example in examples]
        views: dict[tuple[ViewProcessor, int, str], View | ValueError] = {}
        for processor in dict.fromkeys(map(self.processor_of, sources)):
            requests = {
                (processor, number, variant): Request(self.with_another(example, variant), variant)
                for number, (example, shown) in enumerate(zip(examples, variants, strict=True))
                for source, variant in shown.items()
                if self.processor_of(source) is processor
            }
            views |= zip(requests, processor.view_all(list(requests.values())), strict=True)
        rendered: list[dict[Source, View] | ValueError] = []
        for number, shown in enumerate(variants):
            found = {source: views[self.processor_of(source), number, variant] for source, variant in shown.items()}
            error = next((view for view in found.values() if isinstance(view, ValueError)), None)
            rendered.append(error or {s: view for s, view in found.items() if not isinstance(view, ValueError)})
        return rendered

    def processor_of(self, source: Source) -> ViewProcessor:
        """The processor of what this source sees. Whoever has the student's weights and sees its plain view sees what
        the student sees."""
        as_student = source.policy != "teacher" and source.view == "plain"
        return self.views if as_student else self.of_policies.get(source.policy, self.views)

    def with_another(self, example: Mapping[str, Any], variant: str) -> Mapping[str, Any]:
        """For a variant that shows another example, with one of another prompt that has what is to be shown, chosen by
        the example's id; as it is where none of the first `DONORS` has."""
        if not variant.startswith(OTHER_PREFIX):
            return example
        random = Random(str(example["id"]))
        for _ in range(min(DONORS, len(self.others))):
            other = self.others[random.randrange(len(self.others))]
            if other["prompt"] == example["prompt"] or VARIANTS[variant].missing({**example, OTHER: other}) is not None:
                continue
            with suppress(ValueError):  # an image that cannot be read: its own turn is where that is told
                images = [load_image(image).image for image in other.get("images") or []]
                return {**example, OTHER: {**other, "images": images}}
        return example

    def variant_of(self, example: Mapping[str, Any], source: Source) -> str:
        """The variant that this source sees of the example, or one of `ROLLOUT_VIEWS`."""
        if source.view == "privileged":
            return resolve_variant(example, self.variants[source.policy])
        if source == PLAIN_STUDENT:
            return resolve_variant(example, self.student_variant)
        return "none" if source.view == "plain" else source.view


@dataclass(frozen=True)
class RenderedBatch:
    """Views per source, one entry a rollout."""

    views: dict[Source, list[View]]
    usable: Tensor
    """`[B]` bool: false for a rollout whose example was refused; other views stand in their place"""
    refusals: list[Refusal]


def render_batch(
    renderer: ViewRenderer, examples: Sequence[Mapping[str, Any]], sources: Sequence[Source], group: int
) -> RenderedBatch:
    """Render a generation batch in which every run of `group` examples is one prompt.

    An example that cannot be shown keeps its place, so that ranks stay in step, but is filled with another's views, or
    with blank ones where no example can be shown, and marked unusable: it is generated for and then neither scored nor
    taught.
    """
    prompts = examples[::group]
    rendered = renderer.render(prompts, sources)
    refusals = [
        Refusal(str(example.get("id")), str(error))
        for example, error in zip(prompts, rendered, strict=True)
        if isinstance(error, ValueError)
    ]
    blank = dict.fromkeys(sources, renderer.views.blank)
    filler = next((views for views in rendered if not isinstance(views, ValueError)), blank)
    refused = [isinstance(views, ValueError) for views in rendered]
    filled = [filler if isinstance(views, ValueError) else views for views in rendered for _ in range(group)]
    return RenderedBatch(
        views={source: [views[source] for views in filled] for source in sources},
        usable=~torch.tensor(refused).repeat_interleave(group),
        refusals=refusals,
    )


def pad_responses(responses: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids `[B, N]` int64 and mask `[B, N]` bool."""
    length = max(len(ids) for ids in responses)
    ids = torch.tensor([list(r) + [fill] * (length - len(r)) for r in responses], dtype=torch.long).reshape(-1, length)
    mask = torch.arange(length)[None] < torch.tensor([len(r) for r in responses])[:, None]
    return ids, mask


def reference_solution(example: Mapping[str, Any]) -> str:
    """The steps with their results and the final answer, as far as the example has them."""
    steps, answer = (privilege(example, key) for key in ("hints_executed", "final_answer"))
    return "\n".join([*(steps or ()), f"The final answer is: {answer}"])


def trajectories(
    lessons: Sequence[Lesson],
    examples: Sequence[Mapping[str, Any]],
    rollouts: Sequence[list[int]],
    views: ViewProcessor,
    max_length: int,
) -> list[list[int]]:
    """The response ids of a batch in which every run of `lessons` is of one rollout; a reference solution is cut at
    `max_length` tokens."""
    found = []
    for b, example in enumerate(examples):
        if lessons[b % len(lessons)].trajectory == "rollout":
            found.append(rollouts[b // len(lessons)])
            continue
        ids = views.tokenizer(reference_solution(example), add_special_tokens=False)["input_ids"]
        found.append([*ids, views.tokenizer.eos_token_id][:max_length])
    return found


def right_rollouts_to_show(verdicts: Sequence[bool | None], group: int) -> list[int | None]:
    """For each rollout the next right one of the same prompt, going round, or None where there is no other."""
    shown: list[int | None] = []
    for b in range(len(verdicts)):
        first = b - b % group
        others = [first + (b - first + step) % group for step in range(1, group)]
        shown.append(next((other for other in others if verdicts[other]), None))
    return shown


def render_with_rollouts(
    kind: str,
    renderer: ViewRenderer,
    examples: Sequence[Mapping[str, Any]],
    plain: Sequence[View],
    responses: Sequence[str],
    shown: Sequence[int | None],
    sources: Sequence[Source],
) -> tuple[dict[Source, list[View]], list[int | None]]:
    """One of `ROLLOUT_VIEWS` of each prompt with a rollout of it, as each of the sources that ask for it sees it, and
    which rollout that is.

    Where there is none, or its view cannot be made (too long, a control token), a plain view stands in its place.
    """
    requests = {
        row: Request(example, addition=ROLLOUT_VIEWS[kind].format(response=responses[other]))
        for row, (example, other) in enumerate(zip(examples, shown, strict=True))
        if other is not None
    }
    processors = {source: renderer.processor_of(source) for source in sources if source.view == kind}
    made = {
        processor: dict(zip(requests, processor.view_all(list(requests.values())), strict=True))
        for processor in dict.fromkeys(processors.values())
    }
    failed = {row for views in made.values() for row, view in views.items() if isinstance(view, ValueError)}
    used = [None if row in failed else other for row, other in enumerate(shown)]
    for processor, views in made.items():
        instead = [row for row, other in enumerate(used) if other is None]
        in_place: Sequence[View | ValueError] = [plain[row] for row in instead]
        if processor is not renderer.views:  # images of other sizes
            in_place = processor.view_all([Request(examples[row]) for row in instead])
        views |= zip(instead, in_place, strict=True)
    by_source = {
        source: [view if isinstance(view := made[processor][row], View) else plain[row] for row in range(len(plain))]
        for source, processor in processors.items()
    }
    return by_source, used
