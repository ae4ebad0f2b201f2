"""What is packed for TRL, shuffled and cut by TRL's own functions, comes back as the rollouts that it was."""

from dataclasses import fields

import pytest
import torch
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from dopd_vl.core import Plan, Source, Term, TokenScores
from dopd_vl.objectives import Decision
from dopd_vl.training.step_batch import KeptHidden, StepBatch
from dopd_vl.views import View

TEACHER, COPY = Source("teacher", "privileged"), Source("student", "privileged")
LENGTHS = [3, 0, 5, 1]


def views() -> list[View]:
    return [View(prompt_ids=[number]) for number in range(4)]


def scores(seed: int) -> TokenScores:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"top_k_ids": (4, 5, 2), "top_k_logp": (4, 5, 2)}
    return TokenScores(
        **{f.name: torch.rand(*shapes.get(f.name, (4, 5)), generator=generator) for f in fields(TokenScores)}
    )


@pytest.fixture
def step() -> tuple[StepBatch, Decision, torch.Tensor]:
    """Four rollouts with their decision, and the teacher's hidden states at all tokens."""
    mask = torch.tensor([[n < length for n in range(5)] for length in LENGTHS])
    hidden = torch.arange(4 * 5 * 2, dtype=torch.float32).reshape(4, 5, 2)
    terms = (
        Term(TEACHER, "js", "full", torch.rand(4, 5)),
        Term(COPY, "reverse_kl", "top_k", torch.rand(4, 5), 2),
    )
    decision = Decision(Plan(terms, "token"), parts={"HT": torch.rand(4, 5) > 0.5, "HS": torch.rand(4, 5) > 0.5})
    batch = StepBatch(
        response_ids=torch.arange(20).reshape(4, 5),
        response_mask=mask,
        places=torch.arange(4),
        views=views(),
        scale=torch.rand(4, 5),
        plan=decision.plan,
        parts=decision.parts,
        scores={TEACHER: scores(0), COPY: scores(1)},
        hidden={TEACHER: KeptHidden.of(hidden, mask)},
    )
    return batch, decision, hidden


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_every_rollout_comes_back_with_what_is_its_own(
    step: tuple[StepBatch, Decision, torch.Tensor], slices: int
) -> None:
    whole, decision, hidden = step
    packed = split_tensor_dict(shuffle_sequence_dict(whole.pack(torch.tensor(9))), slices)
    seen = []
    for part in packed:
        assert part["num_items_in_batch"] == 9
        slice_ = StepBatch.unpack(part, decision)
        width = slice_.response_mask.shape[1]
        assert width == max(1, int(slice_.response_mask.sum(-1).max()))
        for row, place in enumerate(slice_.places.tolist()):
            seen.append(place)
            assert slice_.response_ids[row].equal(whole.response_ids[place, :width])
            assert slice_.scale[row].equal(whole.scale[place, :width])
            assert slice_.views[row].prompt_ids == [place]
            for term, of_whole in zip(slice_.plan.terms, whole.plan.terms, strict=True):
                assert term.weight[row].equal(of_whole.weight[place, :width])
                assert (term.source, term.divergence, term.support) == (
                    of_whole.source,
                    of_whole.divergence,
                    of_whole.support,
                )
            for name, part_mask in slice_.parts.items():
                assert part_mask[row].equal(whole.parts[name][place, :width])
            for source in (TEACHER, COPY):
                assert slice_.scores[source].top_k_logp[row].equal(whole.scores[source].top_k_logp[place, :width])
            states = slice_.hidden[TEACHER].whole(torch.device("cpu"))
            there = whole.response_mask[place, :width]
            assert states[row][there].equal(hidden[place, :width][there])
            assert states[row][~there].eq(0).all()
            assert slice_.responses[row] == whole.response_ids[place, : max(1, LENGTHS[place])].tolist()
        assert COPY not in slice_.hidden
        assert slice_.plan.reduction == "token"
    assert sorted(seen) == [0, 1, 2, 3]


def test_a_decision_without_parts_has_none(step: tuple[StepBatch, Decision, torch.Tensor]) -> None:
    whole, decision, _ = step
    bare = Decision(decision.plan)
    batch = StepBatch(**{**vars(whole), "parts": {}})
    assert StepBatch.unpack(batch.pack(torch.tensor(1)), bare).parts == {}
