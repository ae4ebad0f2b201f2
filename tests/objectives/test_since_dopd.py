"""Methods published since DOPD: TOP-D, SA-OPD, Cal-OPD, RP-OPSD, S2VOPD, OPD-V, and OPSD's clipped entries."""

from math import exp, isinf, log

import numpy as np
import pytest
import torch
from helpers import (
    NAN,
    STUDENT,
    TEACHER,
    check_loss,
    check_policy_gradient,
    js,
    kl,
    likeliest,
    nothing_to_learn,
    random_batch,
    sampled,
    softmax,
    with_bucket,
)

from dopd_vl.core import PolicyGradient, Source, Term
from dopd_vl.objectives import CalOpd, Dapd, Opd, OpdV, Opsd, RpOpsd, S2vOpd, SaOpd, TopD
from dopd_vl.objectives.base import Requirements
from dopd_vl.objectives.task_reward import with_task_reward

AVERAGE = Source("average", "plain")
CROP, MASKED_CROP = Source("average", "evidence_crop"), Source("average", "masked_crop")
PRAISED, BLAMED = Source("teacher", "positive_feedback"), Source("teacher", "negative_feedback")
WITHOUT = Source("teacher", "no_prompt"), Source("student", "no_prompt")


# ---- TOP-D ----------------------------------------------------------------------------------------------------------


def test_top_ds_reward_is_bounded_and_its_return_has_the_mean_of_what_comes_later():
    # alpha 1/2, T/S = 3, 1/4, 1: r = ln(3/2 + 1/2) = ln 2, ln(1/8 + 1/2) = ln 5/8, ln 1 = 0.
    # R = ln 2 + (ln 5/8 + 0) / 2, ln 5/8 + 0, 0.
    given = {TEACHER: [[0.6, 0.1, 0.3, 0.9]], STUDENT: [[0.2, 0.4, 0.3, 0.1]]}
    decision = TopD(alpha=0.5).decide(sampled(given, [[1, 1, 1, 0]]))
    assert decision.per_token["reward"][0].tolist() == pytest.approx([log(2), log(5 / 8), 0.0, 0.0], abs=1e-6)
    R = np.array([log(2) + log(5 / 8) / 2, log(5 / 8), 0.0])
    expected = (R - R.mean()) / R.std(ddof=1)
    (term,) = decision.plan.terms
    assert isinstance(term, PolicyGradient)
    assert term.weight[0].tolist() == pytest.approx([*expected, 0.0], abs=1e-5)
    assert decision.values["top-d/reward"] == pytest.approx((log(2) + log(5 / 8)) / 3, abs=1e-6)


def test_top_d_cannot_be_dragged_below_its_floor():
    # The teacher finds the token impossible: log(1 - alpha) at least, whatever the gap.
    decision = TopD(alpha=0.2).decide(sampled({TEACHER: [[1e-30, 0.5]], STUDENT: [[0.9, 0.5]]}, [[1, 1]]))
    assert decision.per_token["reward"][0].tolist() == pytest.approx([log(0.8), 0.0], abs=1e-6)


def test_top_d_scores_among_the_tokens_of_one_prompt():
    # Prompt 0: two rollouts of one token each, R = ln 2 and 0: mean ln 2 / 2, unbiased std ln 2 / sqrt 2: +-1/sqrt 2.
    # Prompt 1 has one token, which has no spread.
    given = {TEACHER: [[0.6], [0.3], [0.8]], STUDENT: [[0.2], [0.3], [0.1]]}
    (term,) = TopD(alpha=0.5).decide(sampled(given, [[1], [1], [1]], group=[4, 4, 9])).plan.terms
    assert term.weight.flatten().tolist() == pytest.approx([0.5**0.5, -(0.5**0.5), 0.0], abs=1e-6)


def test_top_ds_loss_is_the_published_formula():
    objective, group, lengths = TopD(), [0, 0, 1, 1], [6, 3, 1]
    batch = random_batch(objective)
    p = {source: softmax(z.detach().numpy()) for source, z in batch.logits.items()}
    R = {}
    for b, length in enumerate(lengths):
        ratio = [p[TEACHER][b, n, y] / p[STUDENT][b, n, y] for n, y in enumerate(batch.ids[b, :length])]
        r = [log(0.2 * float(x) + 0.8) for x in ratio]
        for n in range(length):
            R[b, n] = r[n] + (np.mean(r[n + 1 :]) if n + 1 < length else 0.0)
    first = [value for (b, _), value in R.items() if group[b] == 0]
    advantage = np.zeros(batch.mask.shape)
    for (b, n), value in R.items():
        if group[b] == 0:
            advantage[b, n] = (value - np.mean(first)) / np.std(first, ddof=1)

    check_loss(objective, lambda here, S, at, y: -advantage[at], group=group)
    decision = objective.decide(batch.scores(objective, group=group))
    check_policy_gradient(objective, torch.tensor(advantage), decision, batch)


# ---- SA-OPD ---------------------------------------------------------------------------------------------------------


def test_sa_opd_leaves_out_the_least_grounded_and_the_most_extreme_tokens():
    # |A| = ln 2, ln 2, ln 8, 0, ln 2; without a prompt A = ln 2, 0, 0, 0, -ln 2: G = 0, ln 2, ln 8, 0, ln 4.
    # The lowest two of five by G (both 0) and the one of largest |A|: tokens 1 and 4 are left, weighing 5/2 each.
    given = {
        TEACHER: [[0.4, 0.4, 0.8, 0.1, 0.4]],
        STUDENT: [[0.2, 0.2, 0.1, 0.1, 0.2]],
        WITHOUT[0]: [[0.2, 0.1, 0.1, 0.1, 0.1]],
        WITHOUT[1]: [[0.1, 0.1, 0.1, 0.1, 0.2]],
    }
    decision = SaOpd(drop_ungrounded=0.4, drop_extreme=0.2).decide(sampled(given, [[1, 1, 1, 1, 1]]))
    (term,) = decision.plan.terms
    assert isinstance(term, Term)
    assert (str(term.source), term.divergence, term.support) == ("teacher/plain", "reverse_kl", "full")
    assert decision.plan.reduction == "token"
    assert term.weight[0].tolist() == [0.0, 2.5, 0.0, 0.0, 2.5]
    # Of sum |A| = ln 2 * (1 + 1 + 3 + 0 + 1), tokens 0, 2 and 3 have 4 of 6 parts.
    assert decision.values["sa-opd/dropped_gap_share"] == pytest.approx(4 / 6, abs=1e-5)
    assert decision.values["sa-opd/kept_share"] == pytest.approx(2 / 5)


def test_sa_opd_keeps_everything_where_nothing_tells_tokens_apart():
    given = {source: [[0.5, 0.5, 0.5]] for source in (TEACHER, STUDENT, *WITHOUT)}
    (term,) = SaOpd().decide(sampled(given, [[1, 1, 0]])).plan.terms
    assert term.weight.tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_sa_opds_loss_is_the_published_formula(seed: int):
    objective = SaOpd()
    batch = random_batch(objective, seed)
    p = {source: softmax(z.detach().numpy()) for source, z in batch.logits.items()}
    tokens = [(b, n) for b, n in np.ndindex(*batch.mask.shape) if batch.mask[b, n]]

    def gap(above: Source, below: Source, at: tuple[int, int]) -> float:
        return float(np.log(p[above][at][batch.ids[at]] / p[below][at][batch.ids[at]]))

    A = {at: gap(TEACHER, STUDENT, at) for at in tokens}
    G = {at: abs(A[at] - gap(*WITHOUT, at)) for at in tokens}
    # Of ten tokens the two of lowest G and the three of largest |A|.
    dropped = set(sorted(tokens, key=G.__getitem__)[:2]) | set(sorted(tokens, key=lambda at: -abs(A[at]))[:3])
    scale = len(tokens) / (len(tokens) - len(dropped))

    def naive(here, S, at, y):
        return 0.0 if at in dropped else scale * kl(S, here[TEACHER])

    check_loss(objective, naive, reduction="token", seed=seed)


# ---- Cal-OPD --------------------------------------------------------------------------------------------------------


def test_cal_opd_teaches_only_where_the_student_leaves_the_probed_range():
    # lam 2, q = ln .2. Token 0: probes .4 and .1, so d = ln 2 and -ln 2, the range is ln .2 -+ 2 ln 2; p = ln .2 lies
    # within. Token 1: probes do not move it, p = ln .4: -(p - q) = -ln 2. Token 2: probes .2 and .1: down = ln 2, up 0;
    # L = ln .2 - 2 ln 2 = ln .05 and U = ln .2; p = ln .0125 gives L - p = ln 4. Token 3: the same, p = ln .8: -ln 4.
    given = {
        TEACHER: [[0.2, 0.2, 0.2, 0.2], [0.2] * 4],
        STUDENT: [[0.2, 0.4, 0.0125, 0.8], [0.2] * 4],
        PRAISED: [[0.4, 0.2, 0.2, 0.2], [0.4] * 4],
        BLAMED: [[0.1, 0.2, 0.1, 0.1], [0.1] * 4],
    }
    decision = CalOpd(lam=2.0).decide(sampled(given, [[1, 1, 1, 1], [1, 1, 1, 1]]))
    (term,) = decision.plan.terms
    assert decision.per_token["advantage"][0].tolist() == pytest.approx([0.0, -log(2), log(4), -log(4)], abs=1e-5)
    # The second rollout has no advantage at all: the mean goes over the first alone.
    assert term.weight[0].tolist() == pytest.approx([0.0, -2 * log(2), 2 * log(4), -2 * log(4)], abs=1e-5)
    assert term.weight[1].tolist() == [0.0] * 4
    assert decision.values["cal-opd/outside_share"] == pytest.approx(3 / 8)
    assert decision.values["cal-opd/skipped_rollouts"] == pytest.approx(1 / 2)


def test_cal_opd_with_nothing_of_the_probes_is_opd_exactly():
    objective, opd = CalOpd(lam=0.0), Opd(form="policy_gradient")
    batch = random_batch(objective)
    advantages = [o.decide(batch.scores(o)).plan.terms[0].weight for o in (objective, opd)]
    torch.testing.assert_close(*advantages)


def test_cal_opds_loss_is_the_published_formula():
    objective = CalOpd(lam=0.5)

    def naive(here, S, at, y):
        p, q, positive, negative = (np.log(of[y]) for of in (S, here[TEACHER], here[PRAISED], here[BLAMED]))
        up = max(0.0, positive - q, negative - q)
        down = max(0.0, q - positive, q - negative)
        return -(max(q - 0.5 * down - p, 0.0) - max(p - q - 0.5 * up, 0.0)) * 3 / 2

    batch = random_batch(objective)
    decision = objective.decide(batch.scores(objective))
    # The rollout of one token lies within its range: two of three are left.
    assert decision.values["cal-opd/skipped_rollouts"] == pytest.approx(1 / 3)
    assert 0.0 < decision.values["cal-opd/outside_share"] < 1.0
    check_loss(objective, naive)


# ---- RP-OPSD and S2VOPD ---------------------------------------------------------------------------------------------


def test_rp_opsds_loss_is_the_published_formula():
    def naive(here, S, at, y):
        A = here[AVERAGE]
        return sum(A[v] * np.log(A[v] / S[v]) - A[v] + S[v] for v in likeliest(A, 3))

    check_loss(RpOpsd(top_k=3), naive, reduction="token")


def test_s2vopds_loss_is_the_js_renormalised_to_the_teachers_likeliest():
    def naive(here, S, at, y):
        chosen = likeliest(here[AVERAGE], 3)
        return js(*(of[chosen] / of[chosen].sum() for of in (S, here[AVERAGE])))

    check_loss(S2vOpd(top_k=3), naive)


@pytest.mark.parametrize(("cls", "view"), [(RpOpsd, "half_resolution"), (S2vOpd, "augmented")])
def test_the_student_sees_less_than_the_deployed_one_and_its_teacher_as_much(cls, view: str):
    needs = Requirements.of(cls())
    assert (needs.student_variant, needs.needs_images, needs.average_rate) == (view, True, 0.05)
    assert cls().sources() == (AVERAGE,)
    assert Requirements.of(cls(student_variant="none")).student_variant == "none"


# ---- OPD-V ----------------------------------------------------------------------------------------------------------


def test_opd_v_weighs_by_what_the_mask_takes_away_and_divides_by_all_tokens():
    # q+ - q- = ln 4, -ln 2, 0: only the first is taught, with weight ln 4.
    given = {CROP: [[0.8, 0.2, 0.3, 0.3]], MASKED_CROP: [[0.2, 0.4, 0.3, 0.1]]}
    decision = OpdV().decide(sampled(given, [[1, 1, 1, 0]]))
    (term,) = decision.plan.terms
    assert isinstance(term, Term)
    assert term.source == CROP
    assert term.weight[0].tolist() == pytest.approx([log(4), 0.0, 0.0, 0.0])
    assert decision.values["opd-v/evident_share"] == pytest.approx(1 / 3)
    assert decision.parts["evident"].tolist() == [[True, False, False, False]]


def test_opd_vs_loss_is_the_published_formula():
    def naive(here, S, at, y):
        weight = max(np.log(here[CROP][y] / here[MASKED_CROP][y]), 0.0)
        chosen = likeliest(S, 3)
        return weight * js(with_bucket(S, chosen), with_bucket(here[CROP], chosen))

    check_loss(OpdV(top_k=3), naive, reduction="token")


# ---- DAPD -----------------------------------------------------------------------------------------------------------

START, SOLVED, START_OWN = (Source("start", view) for view in ("plain", "hints_executed", "own"))
SNAPSHOT, SNAPSHOT_OWN = Source("average", "hints_executed"), Source("average", "own")


def test_dapds_loss_is_the_published_formula():
    # The rows of the batch, of 6, 3, 1 and no tokens: y after x, y after x and y, r after x and r; r after x.
    lesson, targets = (
        [0, 1, 3, 2],
        {
            0: [(SNAPSHOT, 2 / 15)],
            1: [(SOLVED, 2 / 15), (START, 2 / 5)],
            2: [(START, 2 / 15), (START_OWN, 4 / 5)],
        },
    )

    def at_temperature(p):
        return p ** (1 / 1.1) / (p ** (1 / 1.1)).sum()

    def naive(here, S, at, y):
        pairs = [(at_temperature(here[source]), at_temperature(S), weight) for source, weight in targets[at[0]]]
        sums = [
            weight * sum(min(t * np.log(t / s), 0.05) for t, s in zip(T, S1, strict=True)) for T, S1, weight in pairs
        ]
        return sum(sums) * 10 / [6, 3, 1][at[0]]  # a mean over its own tokens, where ten are divided by

    check_loss(Dapd(), naive, reduction="token", lesson=lesson)


def test_dapds_six_terms_have_the_published_shares():
    given = dict.fromkeys(Dapd().sources(), ((0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)))
    decision = Dapd().decide(sampled(given, [[1, 1], [1, 0], [1, 1], [1, 1]], lesson=[0, 1, 2, 3]))
    # Seven tokens are divided by; the two, one, two and two of a lesson weigh 7/2, 7 or 7/2 each, times the share.
    weights = [term.weight.sum().item() / 7 for term in decision.plan.terms]
    assert weights == pytest.approx([2 / 15, 2 / 15, 2 / 15, 2 / 5, 2 / 5, 4 / 5])
    assert sum(weights) == pytest.approx(2.0)
    assert decision.parts["rollout"].tolist() == [[True, True], [True, False], [False, False], [False, False]]
    with pytest.raises(ValueError, match="which lesson"):
        Dapd().decide(sampled(given, [[1, 1]] * 4))


# ---- clipped entries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.05, 1e-6])
def test_opsd_sums_the_clipped_entries_of_the_forward_kl(clip: float):
    teacher = Source("start", "privileged")

    def naive(here, S, at, y):
        return sum(min(t * np.log(t / s), clip) for t, s in zip(here[teacher], S, strict=True))

    check_loss(Opsd(divergence="forward_kl", entry_clip=clip), naive)


def test_opd_clips_entries_and_the_bucket_of_any_divergence():
    def naive(here, S, at, y):
        chosen = likeliest(here[TEACHER], 3)
        pair = zip(with_bucket(S, chosen), with_bucket(here[TEACHER], chosen), strict=True)
        return sum(min(s * np.log(s / t), 0.1) for s, t in pair)

    check_loss(Opd(support="top_k", top_k=3, entry_clip=0.1), naive)
    assert isinf(Opd().entry_clip)


# ---- a task reward beside distillation ------------------------------------------------------------------------------


def test_a_task_reward_is_the_verdict_among_the_rollouts_of_its_prompt():
    # Prompt 0: right, wrong, wrong: mean 1/3, unbiased variance (4/9 + 1/9 + 1/9) / 2 = 1/3: 2/3 sqrt 3, -1/3 sqrt 3.
    # Prompt 1: two right and one without a verdict: nothing. The last has no token.
    given = {TEACHER: [[0.5, 0.5]] * 7, STUDENT: [[0.25, 0.5]] * 7}
    mask = [[1, 1], [1, 0], [1, 1], [1, 1], [1, 1], [1, 1], [0, 0]]
    scores = sampled(given, mask, group=[0, 0, 0, 1, 1, 1, 1], correct=[1.0, 0.0, 0.0, 1.0, 1.0, NAN, 0.0])
    alone = Opd(form="policy_gradient").decide(scores)
    assert with_task_reward(alone, scores, 0.0) is alone
    both = with_task_reward(alone, scores, 0.5)
    *before, term = both.plan.terms
    assert tuple(before) == alone.plan.terms
    assert both.plan.reduction == alone.plan.reduction
    right, wrong = 3**0.5 / 3, -(3**0.5) / 6
    expected = [[right, right], [wrong, 0.0], [wrong, wrong], *[[0.0, 0.0]] * 4]
    for row, of_row in zip(term.weight.tolist(), expected, strict=True):
        assert row == pytest.approx(of_row, abs=1e-6)
    assert both.values["task_reward/rewarded_rollouts"] == pytest.approx(3 / 6)


# ---- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [TopD(), SaOpd(), CalOpd(), RpOpsd(), S2vOpd(), OpdV()], ids=lambda o: o.name)
def test_a_batch_of_masked_tokens_teaches_nothing(objective):
    nothing_to_learn(objective)


@pytest.mark.parametrize(
    ("cls", "settings", "named"),
    [
        (TopD, {"alpha": 0.0}, "alpha"),
        (TopD, {"alpha": 1.0}, "alpha"),
        (SaOpd, {"drop_ungrounded": 1.0}, "drop_ungrounded"),
        (SaOpd, {"drop_extreme": -0.1}, "drop_extreme"),
        (SaOpd, {"without_view": "plain"}, "without_view"),
        (CalOpd, {"lam": NAN}, "lam"),
        (RpOpsd, {"top_k": 0}, "top_k"),
        (S2vOpd, {"divergence": "kl"}, "divergence"),
        (OpdV, {"average_rate": 0.0}, "average_rate"),
        (Opsd, {"entry_clip": 0.0}, "entry_clip"),
        (Dapd, {"temperature": 0.0}, "temperature"),
        (Dapd, {"average_every": 0}, "average_every"),
        (Opd, {"entry_clip": -exp(1)}, "entry_clip"),
    ],
)
def test_a_wrong_setting_is_named(cls, settings, named: str):
    with pytest.raises(ValueError, match=named):
        cls(**settings)
