"""An objective that reads no scores has them made for the rollouts that are kept to look at, and for no others."""

from pathlib import Path

import pytest

from dopd_vl.common.files import read_jsonl
from dopd_vl.core import projection
from dopd_vl.objectives import Opd
from dopd_vl.objectives.base import Requirements
from dopd_vl.train_config import DataSettings, LoopSettings, ModelSettings, ObjectiveSettings, TrainConfig
from dopd_vl.training import policies
from dopd_vl.training.run import run_training


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, False),
        ({"divergence": "js", "teacher_view": "privileged"}, False),
        ({"support": "top_k"}, True),
        ({"form": "policy_gradient"}, True),
        ({"evidence_gate": "plain", "teacher_view": "privileged"}, True),
    ],
)
def test_only_what_reads_scores_asks_for_them(settings: dict, needed: bool) -> None:
    assert Requirements.of(Opd(**settings)).needs_scores is needed


def test_whole_vocabulary_opd_scores_the_kept_rollouts_alone_and_learns_the_same(
    nano_models: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    original = projection.score_tokens

    def counting(policy, ids, mask, *rest):
        scored.append(int(mask.sum()))
        return original(policy, ids, mask, *rest)

    monkeypatch.setattr(policies, "score_tokens", counting)

    def run(name: str) -> list[dict]:
        config = TrainConfig(
            output_dir=str(tmp_path / name),
            model=ModelSettings(str(nano_models / "text-student"), str(nano_models / "text-teacher")),
            data=DataSettings(train=str(text_data)),
            objective=ObjectiveSettings("opd"),
            training=LoopSettings(
                max_steps=2, per_device_train_batch_size=8, num_generations=1, max_completion_length=6,
                learning_rate=1e-3, gradient_checkpointing=False, save_steps=10,
                rollouts_to_keep=2,
            ),
        )  # fmt: skip
        return run_training(config).metrics

    lazy = run("lazy")
    few = sum(scored)
    kept = read_jsonl(tmp_path / "lazy" / "rollouts.jsonl")
    assert few == sum(len(rollout["tokens"]) for rollout in kept)
    assert all(value < 0 for rollout in kept for value in rollout["logp/teacher/plain"])

    scored.clear()
    monkeypatch.setattr(Opd, "needs_scores", True)
    eager = run("eager")
    assert sum(scored) > 2 * few
    assert [row["loss"] for row in lazy if "loss" in row] == [row["loss"] for row in eager if "loss" in row]
