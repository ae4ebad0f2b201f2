"""Every divergence, support and tail: values by hand, properties, gradients, and what impossible tokens do."""

from itertools import product
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dopd_vl.core.divergences import (
    DIVERGENCES,
    LOG_PROB_FLOOR,
    SUPPORTS,
    TAILS,
    TOP_K_SOURCES,
    coarsen,
    divergence,
    entropy,
    js,
    kl,
    log_softmax,
    sampled_logp,
    support_mask,
)

INF = float("inf")


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def measure(
    name: str,
    support: str,
    tail: str,
    student_logp: Tensor,
    target_logp: Tensor,
    ids: Tensor,
    top_k: int = 2,
    top_k_source: str = "target",
) -> Tensor:
    chosen = support_mask(support, student_logp, target_logp, ids, top_k, top_k_source)
    return divergence(name, coarsen(student_logp, chosen, tail), coarsen(target_logp, chosen, tail))


# ---- values by hand --------------------------------------------------------------------------------------------------


def test_values_on_two_entries():
    S, T = logs(3 / 4, 1 / 4), logs(1 / 2, 1 / 2)
    # KL(S||T) = 3/4 ln((3/4)/(1/2)) + 1/4 ln((1/4)/(1/2)) = 3/4 ln(3/2) - 1/4 ln 2 = 0.304099 - 0.173287
    assert divergence("reverse_kl", S, T).item() == pytest.approx(0.130812, abs=1e-6)
    # KL(T||S) = 1/2 ln((1/2)/(3/4)) + 1/2 ln((1/2)/(1/4)) = 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)
    assert divergence("forward_kl", S, T).item() == pytest.approx(0.143841, abs=1e-6)
    # M = (5/8, 3/8).  KL(T||M) = 1/2 ln(4/5) + 1/2 ln(4/3) = 1/2 ln(16/15) = 0.032269
    #                  KL(S||M) = 3/4 ln(6/5) + 1/4 ln(2/3) = 0.136741 - 0.101366 = 0.035375;  half the sum
    assert divergence("js", S, T).item() == pytest.approx(0.033822, abs=1e-6)


# Three entries:  S = (1/2, 1/3, 1/6)   T = (1/6, 1/2, 1/3)   the sampled token is entry 0.
# Entry by entry: S/T = (3, 2/3, 1/2)   M = (1/3, 5/12, 1/4)  S/M = (3/2, 4/5, 2/3)  T/M = (1/2, 6/5, 4/3)
#   sampled       entry 0 | the rest:   S = (1/2 | 1/2)   T = (1/6 | 5/6)   M = (1/3 | 2/3)
#   top-1 of T    entry 1 | the rest:   S = (1/3 | 2/3)   T = (1/2 | 1/2)   M = (5/12 | 7/12)
#   top-2 of T    entries 1, 2 | entry 0; renormalised by 1/2 and 5/6:  S' = (2/3, 1/3)  T' = (3/5, 2/5)
#                 M' = (19/30, 11/30)   S'/M' = (20/19, 10/11)   T'/M' = (18/19, 12/11)
# "bucket" of top-2 leaves one entry in the bucket and so equals "full"; "drop" sums the kept entries alone, and may be
# negative; "renormalize" of a single entry is 1 against 1, so zero.
FULL = {
    "reverse_kl": 1 / 2 * log(3) + 1 / 3 * log(2 / 3) + 1 / 6 * log(1 / 2),
    "forward_kl": 1 / 6 * log(1 / 3) + 1 / 2 * log(3 / 2) + 1 / 3 * log(2),
    "js": (1 / 6 * log(1 / 2) + 1 / 2 * log(6 / 5) + 1 / 3 * log(4 / 3)) / 2
    + (1 / 2 * log(3 / 2) + 1 / 3 * log(4 / 5) + 1 / 6 * log(2 / 3)) / 2,
}
BY_HAND = {
    **{(name, "full", 0, tail): value for name, value in FULL.items() for tail in TAILS},
    ("reverse_kl", "sampled", 0, "bucket"): 1 / 2 * log(3) + 1 / 2 * log(3 / 5),
    ("reverse_kl", "sampled", 0, "drop"): 1 / 2 * log(3),
    ("reverse_kl", "sampled", 0, "renormalize"): 0.0,
    ("forward_kl", "sampled", 0, "bucket"): 1 / 6 * log(1 / 3) + 5 / 6 * log(5 / 3),
    ("forward_kl", "sampled", 0, "drop"): 1 / 6 * log(1 / 3),
    ("forward_kl", "sampled", 0, "renormalize"): 0.0,
    ("js", "sampled", 0, "bucket"): (1 / 6 * log(1 / 2) + 5 / 6 * log(5 / 4)) / 2
    + (1 / 2 * log(3 / 2) + 1 / 2 * log(3 / 4)) / 2,
    ("js", "sampled", 0, "drop"): (1 / 6 * log(1 / 2)) / 2 + (1 / 2 * log(3 / 2)) / 2,
    ("js", "sampled", 0, "renormalize"): 0.0,
    ("reverse_kl", "top_k", 1, "bucket"): 1 / 3 * log(2 / 3) + 2 / 3 * log(4 / 3),
    ("reverse_kl", "top_k", 1, "drop"): 1 / 3 * log(2 / 3),
    ("reverse_kl", "top_k", 1, "renormalize"): 0.0,
    ("forward_kl", "top_k", 1, "bucket"): 1 / 2 * log(3 / 2) + 1 / 2 * log(3 / 4),
    ("forward_kl", "top_k", 1, "drop"): 1 / 2 * log(3 / 2),
    ("forward_kl", "top_k", 1, "renormalize"): 0.0,
    ("js", "top_k", 1, "bucket"): (1 / 2 * log(6 / 5) + 1 / 2 * log(6 / 7)) / 2
    + (1 / 3 * log(4 / 5) + 2 / 3 * log(8 / 7)) / 2,
    ("js", "top_k", 1, "drop"): (1 / 2 * log(6 / 5)) / 2 + (1 / 3 * log(4 / 5)) / 2,
    ("js", "top_k", 1, "renormalize"): 0.0,
    **{(name, "top_k", 2, "bucket"): value for name, value in FULL.items()},
    ("reverse_kl", "top_k", 2, "drop"): 1 / 3 * log(2 / 3) + 1 / 6 * log(1 / 2),
    ("reverse_kl", "top_k", 2, "renormalize"): 2 / 3 * log(10 / 9) + 1 / 3 * log(5 / 6),
    ("forward_kl", "top_k", 2, "drop"): 1 / 2 * log(3 / 2) + 1 / 3 * log(2),
    ("forward_kl", "top_k", 2, "renormalize"): 3 / 5 * log(9 / 10) + 2 / 5 * log(6 / 5),
    ("js", "top_k", 2, "drop"): (1 / 2 * log(6 / 5) + 1 / 3 * log(4 / 3)) / 2
    + (1 / 3 * log(4 / 5) + 1 / 6 * log(2 / 3)) / 2,
    ("js", "top_k", 2, "renormalize"): (3 / 5 * log(18 / 19) + 2 / 5 * log(12 / 11)) / 2
    + (2 / 3 * log(20 / 19) + 1 / 3 * log(10 / 11)) / 2,
    **{(name, "top_k", 3, tail): value for name, value in FULL.items() for tail in TAILS},
}


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: "-".join(map(str, case)))
def test_every_divergence_support_and_tail_by_hand(case: tuple[str, str, int, str]):
    name, support, top_k, tail = case
    value = measure(name, support, tail, logs(1 / 2, 1 / 3, 1 / 6), logs(1 / 6, 1 / 2, 1 / 3), torch.tensor(0), top_k)
    assert value.item() == pytest.approx(BY_HAND[case], abs=1e-12)


def test_the_cases_by_hand_leave_no_combination_out():
    covered = {(name, support, tail) for name, support, _, tail in BY_HAND}
    assert covered == set(product(DIVERGENCES, SUPPORTS, TAILS))


def test_top_k_source_says_whose_tokens_are_looked_at():
    S, T, ids = logs(1 / 2, 1 / 3, 1 / 6), logs(1 / 6, 1 / 2, 1 / 3), torch.tensor(2)
    chosen = {source: support_mask("top_k", S, T, ids, 1, source).tolist() for source in TOP_K_SOURCES}
    assert chosen == {"target": [False, True, False], "student": [True, False, False], "union": [True, True, False]}
    # With the student's only token, entry 0, and the rest dropped: 1/2 ln 3. With both policies' tokens, 0 and 1:
    # 1/2 ln 3 + 1/3 ln(2/3).
    assert measure("reverse_kl", "top_k", "drop", S, T, ids, 1, "student").item() == pytest.approx(log(3) / 2)
    union = measure("reverse_kl", "top_k", "drop", S, T, ids, 1, "union").item()
    assert union == pytest.approx(log(3) / 2 + log(2 / 3) / 3)


def test_coarsened_masses():
    logp, chosen = logs(1 / 2, 1 / 3, 1 / 6), torch.tensor([False, True, True])
    assert coarsen(logp, chosen, "bucket").exp().tolist() == pytest.approx([0, 1 / 3, 1 / 6, 1 / 2])
    assert coarsen(logp, chosen, "renormalize").exp().tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert coarsen(logp, chosen, "drop").exp().tolist() == pytest.approx([0, 1 / 3, 1 / 6])
    assert coarsen(logp, None, "bucket") is logp


def test_entropy_and_sampled_logp_by_hand():
    logp = logs(1 / 2, 1 / 4, 1 / 4)
    # 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2
    assert entropy(logp).item() == pytest.approx(1.5 * log(2))
    assert entropy(torch.tensor([0.0, -INF])).item() == 0.0
    assert sampled_logp(logp, torch.tensor(2)).item() == pytest.approx(-log(4))


# ---- properties ------------------------------------------------------------------------------------------------------


@st.composite
def policy_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """Two policies over the same few entries, from flat to nearly one-hot, ties and shared values included."""
    vocabulary = draw(st.integers(2, 6))
    logit = st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30, width=32))
    rows = [draw(st.lists(logit, min_size=vocabulary, max_size=vocabulary)) for _ in range(2)]
    S, T = (log_softmax(torch.tensor(row, dtype=torch.float64)) for row in rows)
    return S, T, torch.tensor(draw(st.integers(0, vocabulary - 1))), draw(st.integers(1, vocabulary))


@given(policy_pairs(), st.sampled_from(DIVERGENCES), st.sampled_from(SUPPORTS), st.sampled_from(TOP_K_SOURCES))
def test_divergences_are_never_negative_and_zero_between_equals(pair, name, support, top_k_source):
    S, T, ids, top_k = pair
    for tail in ("bucket", "renormalize"):
        assert measure(name, support, tail, S, T, ids, top_k, top_k_source).item() >= -1e-12
    for tail in TAILS:
        assert measure(name, support, tail, S, S, ids, top_k, top_k_source).item() == pytest.approx(0.0, abs=1e-12)


@given(policy_pairs(), st.sampled_from(DIVERGENCES))
def test_merging_entries_into_a_bucket_never_adds_divergence(pair, name):
    S, T, ids, top_k = pair
    full = divergence(name, S, T).item()
    assert measure(name, "top_k", "bucket", S, T, ids, top_k).item() <= full + 1e-12
    assert measure(name, "sampled", "bucket", S, T, ids).item() <= full + 1e-12


@given(policy_pairs())
def test_js_is_symmetric_and_at_most_log_two(pair):
    S, T, _, _ = pair
    assert js(S, T).item() == pytest.approx(js(T, S).item(), abs=1e-12)
    assert js(S, T).item() <= log(2) + 1e-12


@given(policy_pairs(), st.sampled_from(DIVERGENCES), st.sampled_from(TAILS))
def test_top_k_of_the_whole_vocabulary_is_full(pair, name, tail):
    S, T, ids, _ = pair
    whole = measure(name, "top_k", tail, S, T, ids, S.shape[-1]).item()
    assert whole == pytest.approx(divergence(name, S, T).item(), abs=1e-12)


# ---- gradients -------------------------------------------------------------------------------------------------------

S_LOGITS = torch.tensor([[0.3, -1.2, 0.9, 0.1], [2.0, 0.4, -0.7, -1.5]], dtype=torch.float64)
T_LOGITS = torch.tensor([[-0.5, 0.8, 0.2, -1.1], [0.6, 1.4, -2.0, 0.0]], dtype=torch.float64)
SAMPLED = torch.tensor([2, 0])


@pytest.mark.parametrize("top_k_source", TOP_K_SOURCES)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_match_finite_differences(name: str, support: str, tail: str, top_k_source: str):
    def loss(student_logits: Tensor) -> Tensor:
        S, T = log_softmax(student_logits), log_softmax(T_LOGITS)
        return measure(name, support, tail, S, T, SAMPLED, 2, top_k_source)

    assert torch.autograd.gradcheck(loss, S_LOGITS.clone().requires_grad_())


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("clip", [INF, 0.05])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_of_clipped_and_corrected_sums_match_finite_differences(
    name: str, tail: str, clip: float, corrected: bool
):
    def loss(student_logits: Tensor) -> Tensor:
        S, T = log_softmax(student_logits), log_softmax(T_LOGITS)
        chosen = support_mask("top_k", S, T, SAMPLED, 2)
        return divergence(name, coarsen(S, chosen, tail), coarsen(T, chosen, tail), clip, corrected)

    assert torch.autograd.gradcheck(loss, S_LOGITS.clone().requires_grad_())


def test_a_clipped_entry_counts_for_the_clip_and_is_not_learned_from():
    # S = (3/4, 1/4), T = (1/2, 1/2). Entries: forward KL  1/2 ln 2/3 = -0.2027 and 1/2 ln 2 = 0.3466, clipped at 0.1;
    #                                          reverse KL  3/4 ln 3/2 = 0.3041, clipped, and 1/4 ln 1/2 = -0.1733.
    # Gradient in the logits: what is left is f(S_0) = -1/2 ln S_0 + .. with dS_0/dz_0 = 3/16: -1/2 * 4/3 * 3/16 = -1/8;
    # and S_1 (ln S_1 - ln T_1) with dS_1/dz_0 = -3/16: -3/16 (ln 1/2 + 1).
    expected = {
        "forward_kl": (1 / 2 * log(2 / 3) + 0.1, -1 / 8),
        "reverse_kl": (1 / 4 * log(1 / 2) + 0.1, -3 / 16 * (1 - log(2))),
    }
    for name, (value, gradient) in expected.items():
        logits = logs(3 / 4, 1 / 4).requires_grad_()
        found = divergence(name, log_softmax(logits), logs(1 / 2, 1 / 2), entry_clip=0.1)
        found.backward()
        assert found.item() == pytest.approx(value, abs=1e-12)
        assert logits.grad.tolist() == pytest.approx([gradient, -gradient], abs=1e-12)


def test_a_corrected_sum_over_some_entries_is_a_divergence():
    # The first of S = (3/4, 1/4), T = (1/2, 1/2): 1/2 ln 2/3 - 1/2 + 3/4 = 0.0473, where the bare sum is -0.2027.
    S, T, first = logs(3 / 4, 1 / 4), logs(1 / 2, 1 / 2), torch.tensor([True, False])
    pair = coarsen(S, first, "drop"), coarsen(T, first, "drop")
    assert divergence("forward_kl", *pair, corrected=True).item() == pytest.approx(
        1 / 2 * log(2 / 3) + 1 / 4, abs=1e-12
    )
    assert divergence("reverse_kl", *pair, corrected=True).item() == pytest.approx(
        3 / 4 * log(3 / 2) - 1 / 4, abs=1e-12
    )
    # Where student and target are equal nothing pulls, while the bare sum would let the student raise what it kept.
    for corrected, pull in ((True, 0.0), (False, -1 / 4)):
        logits = logs(1 / 2, 1 / 2).requires_grad_()
        divergence("forward_kl", coarsen(log_softmax(logits), first, "drop"), pair[1], corrected=corrected).backward()
        assert logits.grad[0].item() == pytest.approx(pull, abs=1e-12)


def test_gradients_by_hand():
    # On two entries with S = (3/4, 1/4), T = (1/2, 1/2), M = (5/8, 3/8), with respect to the student's logits:
    #   reverse KL  S_v (ln S_v/T_v - KL(S||T)): 3/4 (ln 3/2 - 3/4 ln 3/2 + 1/4 ln 2) = 3/16 ln 3
    #   forward KL  S_v - T_v                  : 3/4 - 1/2 = 1/4
    #   JS          1/2 S_v (ln S_v/M_v - KL(S||M)): 3/8 (ln 6/5 - 3/4 ln 6/5 - 1/4 ln 2/3) = 3/32 ln 9/5
    # and the second entry takes the opposite.
    expected = {"reverse_kl": 3 / 16 * log(3), "forward_kl": 1 / 4, "js": 3 / 32 * log(9 / 5)}
    for name, first in expected.items():
        logits = logs(3 / 4, 1 / 4).requires_grad_()
        divergence(name, log_softmax(logits), logs(1 / 2, 1 / 2)).backward()
        assert logits.grad.tolist() == pytest.approx([first, -first], abs=1e-12)


# ---- impossible tokens and narrow types ------------------------------------------------------------------------------

IMPOSSIBLE = {
    "student": ([0.0, -INF, 1.0], [0.5, 0.2, 0.1]),
    "target": ([0.5, 0.2, 0.1], [0.0, -INF, 1.0]),
    "both, the same": ([0.0, -INF, 1.0], [2.0, -INF, 1.0]),
    "both, apart": ([0.0, -INF, -INF], [-INF, 3.0, 1.0]),
    "student certain": ([0.0, -INF, -INF], [0.5, 0.2, 0.1]),
    "target certain": ([0.5, 0.2, 0.1], [-INF, 0.0, -INF]),
    "nearly": ([0.0, -1e4, 5.0], [3e4, 0.0, -3e4]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_impossible_tokens_leave_values_and_gradients_finite(name: str, dtype: torch.dtype):
    student, target = (torch.tensor(rows, dtype=dtype) for rows in zip(*IMPOSSIBLE.values(), strict=True))
    T = log_softmax(target)
    for support, tail, source, top_k in product(SUPPORTS, TAILS, TOP_K_SOURCES, (1, 2, 3)):
        if support != "top_k" and (source, top_k) != ("target", 1):
            continue
        for token in range(3 if support == "sampled" else 1):
            logits = student.clone().requires_grad_()
            ids = torch.full((len(student),), token)
            values = measure(name, support, tail, log_softmax(logits), T, ids, top_k, source)
            values.sum().backward()
            assert values.isfinite().all(), (support, tail, source, top_k)
            assert logits.grad.isfinite().all(), (support, tail, source, top_k)
            if tail == "bucket" or support == "full":
                assert values.min() >= -1e-6, (support, tail, source, top_k)


def test_an_impossible_token_costs_as_much_as_the_floor_says():
    # All of S's mass on a token that T excludes: ln 1 - floor. The other way round, KL(T||S), likewise.
    S, T = torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0])
    assert kl(S, T).item() == -LOG_PROB_FLOOR
    assert divergence("forward_kl", S, T).item() == -LOG_PROB_FLOOR
    # Disjoint policies are log 2 apart in JS.
    assert js(S, T).item() == pytest.approx(log(2))


def test_log_softmax_is_at_least_single_precision():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert log_softmax(torch.zeros(3, dtype=dtype)).dtype == torch.float32
    assert log_softmax(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_unknown_names_and_a_top_k_beyond_the_vocabulary_are_named():
    S, ids = logs(1 / 2, 1 / 2), torch.tensor(0)
    with pytest.raises(ValueError, match=r"unknown divergence 'kl', expected one of reverse_kl, forward_kl, js"):
        divergence("kl", S, S)
    with pytest.raises(ValueError, match=r"unknown support 'topk', expected one of sampled, top_k, full"):
        support_mask("topk", S, S, ids)
    with pytest.raises(ValueError, match=r"unknown top_k_source 'teacher', expected one of target, student, union"):
        support_mask("top_k", S, S, ids, 1, "teacher")
    with pytest.raises(ValueError, match=r"unknown tail 'keep', expected one of bucket, renormalize, drop"):
        coarsen(S, torch.tensor([True, False]), "keep")
    with pytest.raises(ValueError, match=r"top_k=3 is larger than the vocabulary of 2 entries"):
        support_mask("top_k", S, S, ids, 3)
