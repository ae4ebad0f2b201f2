"""What a script brings: data that are looked at before a model is, verifiers of its own, types that a checker knows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mypy.api
import pytest
from datasets import Dataset
from transformers import EarlyStoppingCallback

from dopd_vl import DopdConfig, DopdTrainer, register_verifier
from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.evaluation.verifiers import VERIFIERS
from dopd_vl.training.run import load_examples
from privileged import without_privilege
from privileged.schema import TASKS
from tests.conftest import MakeTrainer

ROOT = Path(__file__).parents[2]
ROW = {"id": "a", "prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "task": "number", "privileged": {}}


@pytest.fixture
def own_verifiers() -> Iterator[None]:
    """Those that a test registers are gone after it."""
    tasks, verifiers = list(TASKS), dict(VERIFIERS)
    yield
    TASKS[:] = tasks
    VERIFIERS.clear()
    VERIFIERS.update(verifiers)


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"task": "numbr"}, "row 1, column task: no verifier for 'numbr', did you mean 'number'?"),
        ({"answer": None}, "row 1, column answer: must be a text, not None"),
        ({"id": None}, "row 1, column id: must be a text, not None"),
        ({"prompt": []}, "row 1, column prompt: holds no message"),
        (
            {"prompt": [{"role": "human", "content": "2 + 2?"}]},
            "row 1, column prompt: prompt[0].role is 'human'; known",
        ),
    ],
)
def test_a_faulty_row_is_named_before_a_model_is_looked_for(
    tmp_path: Path, name: str, changed: dict[str, Any], told: str
) -> None:
    rows = [{**ROW, "id": str(number)} for number in range(8)]
    rows[1] |= changed
    good, bad = Dataset.from_list([{**ROW}] * 8), Dataset.from_list(rows)
    with pytest.raises(UserError) as error:
        DopdTrainer("nowhere", args=DopdConfig(str(tmp_path), use_cpu=True), **{"train_dataset": good, name: bad})
    assert str(error.value).startswith(f"{name}: {told}")
    assert "\n" not in str(error.value)
    rows[5] |= {"task": "open?"}
    with pytest.raises(UserError, match=r"; 1 more are faulty$"):
        DopdTrainer("nowhere", args=DopdConfig(str(tmp_path), use_cpu=True), train_dataset=Dataset.from_list(rows))


def test_a_verifier_of_ones_own_scores_rollouts_and_evaluations(
    make_trainer: MakeTrainer, text_data: Path, own_verifiers: None
) -> None:
    seen: list[tuple[str, str]] = []

    def long_enough(response: str, answer: str) -> bool:
        seen.append((response, answer))
        return len(answer) > 0

    register_verifier("long enough", long_enough)
    register_verifier("long enough", long_enough)  # as a notebook's cell that is run again
    with pytest.raises(ConfigurationError, match="task 'number' has a verifier already"):
        register_verifier("number", long_enough)
    rows = load_examples(str(text_data)).select(range(8)).map(lambda row: {"task": "long enough"})
    trainer = make_trainer("text", dataset=rows, eval_dataset=rows.select(range(2)))
    trainer.train()
    assert [row["rollout_accuracy"] for row in trainer.state.log_history if "rollout_accuracy" in row] == [1.0]
    assert trainer.evaluate()["eval_accuracy"] == 1.0
    assert {answer for _, answer in seen} <= set(rows["answer"])
    prompts = Dataset.from_dict({"prompt": ["2 + 2?"], "answer": ["4"]})
    assert without_privilege(prompts, task="long enough")["task"] == ["long enough"]


ALWAYS: dict[str, Any] = {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 1}


@pytest.mark.parametrize("several", [False, True])
def test_the_early_stopping_of_transformers_goes_by_the_accuracy(
    make_trainer: MakeTrainer, text_data: Path, own_verifiers: None, several: bool
) -> None:
    register_verifier("never right", lambda response, answer: False)
    rows = load_examples(str(text_data)).select(range(8)).map(lambda row: {"task": "never right"})
    held_out = rows.select([0])
    asked: dict[str, Any] = {"eval_dataset": {"a": held_out, "b": held_out}, "metric_for_best_model": "b_accuracy"}
    asked = asked if several else {"eval_dataset": held_out}
    trainer = make_trainer("text", dataset=rows, callbacks=[EarlyStoppingCallback(2)], **asked, **ALWAYS)
    trainer.train()
    assert trainer.state.global_step == 3, "an accuracy that stays where it is has two evaluations after its first"
    assert trainer.state.best_metric == 0.0


def test_early_stopping_that_nothing_could_bring_about_is_refused(make_trainer: MakeTrainer, text_data: Path) -> None:
    rows = load_examples(str(text_data)).select([0])
    for settings, told in (
        ({**ALWAYS, "eval_dataset": {"a": rows, "b": rows}}, "^metric_for_best_model: .*'a_accuracy'$"),
        ({"eval_dataset": rows}, "^callbacks: EarlyStoppingCallback .* eval_strategy$"),
        ({}, "^callbacks: EarlyStoppingCallback .* eval_dataset"),
    ):
        with pytest.raises(UserError, match=told):
            make_trainer("text", callbacks=[EarlyStoppingCallback(1)], **settings)


SCRIPT = """
from datasets import Dataset
from dopd_vl import DopdConfig, DopdTrainer, register_verifier
from privileged import load_privileged

def right(response: str, answer: str) -> bool:
    return answer in response

register_verifier("contains", right)
data: Dataset = load_privileged("runs/data/digits")
args = DopdConfig("runs/mine", num_train_epochs=2, num_generations=4, learning_rate=1e-5, teacher_variant="hints")
trainer = DopdTrainer("student", "teacher", args, data, eval_dataset={"held out": data})
trainer.train()
scores: dict[str, float] = trainer.evaluate()
"""
WRONG = """
DopdConfig("runs/mine", num_generation=4)
DopdConfig("runs/mine", max_steps="many")
DopdTrainer("student", "teacher", args, train_data=data)
register_verifier("contains", 3)
"""


def test_a_type_checker_understands_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + WRONG)
    monkeypatch.chdir(ROOT)
    said, crashed, _ = mypy.api.run(["--config-file", "pyproject.toml", str(script)])
    assert not crashed
    found = sorted(
        {int(line.split(":")[1]) for line in said.splitlines() if "script.py:" in line and ": error:" in line}
    )
    first = SCRIPT.count("\n") + 2
    assert found == list(range(first, first + 4)), said
