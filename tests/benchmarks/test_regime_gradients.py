"""Each regime's gradient, measured on a checkpoint of a real DOPD run."""

from pathlib import Path

import pytest

from benchmarks.regime_gradients import NAMES, measure, of_file, of_world
from dopd_vl.common.files import write_jsonl
from dopd_vl.train_config import DataSettings, LoopSettings, ModelSettings, ObjectiveSettings, TrainConfig


def config(models: Path, data: Path, **settings: object) -> TrainConfig:
    return TrainConfig(
        model=ModelSettings(str(models / "text-student"), str(models / "text-teacher")),
        data=DataSettings(train=str(data)),
        objective=ObjectiveSettings("dopd", dict(settings)),
        training=LoopSettings(num_generations=1, max_completion_length=6, gradient_checkpointing=False),
    )


@pytest.mark.parametrize("kind", ["world", "file"])
def test_regimes_share_all_tokens_and_their_gradients_are_compared_with_both_supervised_ones(
    nano_models: Path, text_data: Path, tmp_path: Path, kind: str
) -> None:
    references = of_world("text", None, 8)
    if kind == "file":
        record = {
            "id": "one",
            "prompt": "1 plus 2?",
            "answer": "3",
            "task": "number",
            "privileged": {"hints": ["Add."]},
            "response": "3",
        }
        write_jsonl(tmp_path / "references.jsonl", [record])
        references = of_file(tmp_path / "references.jsonl", 8)
    found = measure(config(nano_models, text_data), str(nano_models / "text-student"), references, rollouts=8)
    regimes = found["regimes"]
    assert list(regimes) == [*NAMES, "all"]
    assert sum(regimes[name]["share"] for name in NAMES) == pytest.approx(1.0)
    for row in regimes.values():
        assert row["norm"] >= 0.0
        assert -1.0 <= row["cosine_plain"] <= 1.0
        assert -1.0 <= row["cosine_privileged"] <= 1.0
    assert regimes["all"]["norm"] <= sum(regimes[name]["norm"] for name in NAMES) + 1e-6
    assert regimes["all"]["norm"] > 0.0
    assert found["supervised_loss"]["plain"] > 0.0


def test_a_regime_that_is_not_taught_has_no_gradient(nano_models: Path, text_data: Path) -> None:
    settings = config(nano_models, text_data, regimes={"LH": {"enabled": False}})
    found = measure(settings, str(nano_models / "text-student"), of_world("text", None, 8), rollouts=8)
    assert found["regimes"]["LH"]["norm"] == 0.0


def test_a_copy_that_a_checkpoint_does_not_hold_is_refused(nano_models: Path, text_data: Path) -> None:
    with pytest.raises(ValueError, match="live copy"):
        measure(config(nano_models, text_data, student_policy="start"), "x", of_world("text", None, 8), rollouts=8)
