"""vLLM itself as the teacher, on a CPU: what it says of a rollout is what the same model says in this process.

`test_served_teacher.py` needs no vLLM: a server of a few lines stands in for it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dopd_vl.objectives import OBJECTIVES
from dopd_vl.objectives.common import PRIVILEGED_STUDENT, PRIVILEGED_TEACHER
from tests.conftest import MakeTrainer
from tests.vllm_server import PYTHON, vllm_serving

pytestmark = pytest.mark.skipif(PYTHON is None, reason="DOPD_VLLM_PYTHON names no Python with vLLM")
NEAR = 1e-3
"""nats"""


@pytest.fixture(scope="module", params=["text", "vision"])
def served(
    request: pytest.FixtureRequest, nano_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A world, and the address of a server of its teacher."""
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    with vllm_serving(nano_models / f"{request.param}-teacher", log, "--max-logprobs", "-1") as url:
        yield request.param, url


class Watched:
    """An objective whose scores and decisions are kept."""

    def __init__(self, objective: Any):
        self.objective, self.name, self.seen = objective, objective.name, []
        self.top_k = objective.top_k

    def sources(self) -> Any:
        return self.objective.sources()

    def decide(self, scores: Any) -> Any:
        decision = self.objective.decide(scores)
        self.seen.append((scores, decision))
        return decision


def test_a_run_with_it_is_the_run_with_the_model_in_this_process(
    make_trainer: MakeTrainer, served: tuple[str, str]
) -> None:
    world, url = served
    runs = []
    for teacher in ({}, {"teacher": url}):
        # The whole vocabulary: nothing is lost in a tail. Rates so small that the rollouts stay the same.
        objective = Watched(OBJECTIVES["dopd"](top_k=640))
        settings = {"max_steps": 3, "logged_top_k": 640, "learning_rate": 1e-6, "num_generations": 2}
        trainer = make_trainer(world, objective, **settings, **teacher)
        size = trainer.model.config.get_text_config().vocab_size
        assert size == 640
        trainer.train()
        runs.append((trainer, objective.seen[-3:]))  # before the first step it decided on a trial, too
    (here, seen_here), (there, seen_there) = runs
    assert len(seen_here) == len(seen_there) == 3
    for (ours, decided), (theirs, decided_there) in zip(seen_here, seen_there, strict=True):
        assert torch.equal(ours.response_ids, theirs.response_ids)
        mask = ours.response_mask
        logp = [scores.policies[PRIVILEGED_TEACHER].logp[mask] for scores in (ours, theirs)]
        assert (logp[0] - logp[1]).abs().max() < NEAR
        own = ours.policies[PRIVILEGED_STUDENT].logp[mask]
        values, q_t, q_s = decided.values, logp[0].exp(), own.exp()
        bounds = values["gap/threshold"], values["gap/teacher_prob_threshold"] + values["gap/student_prob_threshold"]
        # Each in nats from where the regime would be another.
        from_a_bound = [(logp[0] - own).abs() - bounds[0], (q_t + q_s).log() - math.log(bounds[1]), logp[0] - own]
        tied = torch.stack(from_a_bound).abs().amin(0) < 5 * NEAR
        regimes = [decision.per_token["regime"][mask] for decision in (decided, decided_there)]
        assert torch.equal(regimes[0][~tied], regimes[1][~tied])
        assert (~tied).any()
    for ours, theirs in zip(here.model.parameters(), there.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", ["dopd", "dopd-anchored", "opd", "exopd", "eopd", "uni-opd"])
def test_objectives_run_with_it(make_trainer: MakeTrainer, served: tuple[str, str], name: str) -> None:
    world, url = served
    trainer = make_trainer(world, OBJECTIVES[name](), teacher=url, num_generations=4)
    trainer.train()
    row = next(row for row in trainer.state.log_history if "loss" in row)
    assert torch.isfinite(torch.tensor(row["loss"]))
    assert row["teacher_wait_seconds"] > 0
