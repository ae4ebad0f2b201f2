"""The data sets that TRL's trainers take: several to evaluate on, streams, and prompts without privilege."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from PIL import Image

from dopd_vl.common.errors import ConfigurationError, RecordError
from dopd_vl.objectives import OBJECTIVES
from dopd_vl.training.run import load_examples
from privileged import without_privilege
from privileged.records.images import load_image
from tests.conftest import MakeTrainer

PROMPTS = [f"What is {n} + {n}?" for n in range(8)]


@pytest.fixture
def parts(text_data: Path) -> dict[str, Dataset]:
    dataset = load_examples(str(text_data))
    return {"few": dataset.select(range(2)), "more": dataset.select(range(2, 5))}


@pytest.mark.parametrize("kind", ["dict", "DatasetDict", "streams"])
def test_several_sets_are_scored_by_their_names(
    make_trainer: MakeTrainer, parts: dict[str, Dataset], kind: str
) -> None:
    several: Any = {
        "dict": parts,
        "DatasetDict": DatasetDict(parts),
        "streams": {name: part.to_iterable_dataset() for name, part in parts.items()},
    }[kind]
    trainer = make_trainer("text", eval_dataset=several, max_steps=1, eval_strategy="steps", eval_steps=1)
    trainer.train()
    [logged] = [row for row in trainer.state.log_history if "eval_few_accuracy" in row]
    assert "eval_more_accuracy" not in logged
    metrics = trainer.evaluate()
    assert metrics == {**trainer.evaluate("few", metric_key_prefix="eval_few"), **metrics}
    for name, part in parts.items():
        alone = trainer.evaluate(part)
        for metric, value in alone.items():
            assert metrics[metric.replace("eval_", f"eval_{name}_", 1)] == pytest.approx(value, nan_ok=True)


def test_the_best_student_is_that_of_the_named_set(make_trainer: MakeTrainer, parts: dict[str, Dataset]) -> None:
    at_one = dict.fromkeys(("save_steps", "eval_steps"), 1)
    by_steps = dict.fromkeys(("save_strategy", "eval_strategy"), "steps")
    trainer = make_trainer(
        "text",
        eval_dataset=parts,
        load_best_model_at_end=True,
        metric_for_best_model="few_accuracy",
        **at_one,
        **by_steps,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_alone_are_refused_with_their_columns(make_trainer: MakeTrainer, stream: bool) -> None:
    dataset: Any = Dataset.from_dict({"prompt": PROMPTS, "level": [1] * 8})
    if stream:
        dataset = dataset.to_iterable_dataset()
    with pytest.raises(ConfigurationError) as told:
        make_trainer("text", dataset=dataset)
    assert str(told.value).startswith("train_dataset: lacks id, answer, task, privileged, has prompt, level; ")
    assert "privileged.without_privilege(dataset)" in str(told.value)
    with pytest.raises(ConfigurationError, match=r"^eval_dataset\['easy'\]: lacks id, "):
        make_trainer("text", eval_dataset={"easy": dataset})


def test_a_column_of_tools_is_refused(make_trainer: MakeTrainer, parts: dict[str, Dataset]) -> None:
    with_tools = parts["few"].add_column("tools", [[], []])
    with pytest.raises(ConfigurationError, match=r"^eval_dataset: has a column tools, "):
        make_trainer("text", eval_dataset=with_tools)


def test_opd_trains_on_prompts_alone(make_trainer: MakeTrainer) -> None:
    dataset = without_privilege(Dataset.from_dict({"prompt": PROMPTS}))
    trainer = make_trainer("text", objective=OBJECTIVES["opd"](), dataset=dataset, eval_dataset=dataset.select([0]))
    trainer.train()
    assert trainer.state.global_step == 1
    assert not trainer.refusals
    assert trainer.state.log_history[0]["loss"] > 0


MESSAGES = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
PARTS = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]}]


@pytest.mark.parametrize(
    ("columns", "prompt", "answer"),
    [
        ({"prompt": "1 + 1?"}, [("user", "1 + 1?")], ""),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, [("user", "Hi.")], "Hello."),
        ({"prompt": "Say hello.", "completion": "Hello."}, [("user", "Say hello.")], "Hello."),
        ({"prompt": "1 + 1?", "completion": "It is 2.", "answer": 2}, [("user", "1 + 1?")], "2"),
        ({"messages": MESSAGES}, [("user", "Hi.")], "Hello."),
        ({"prompt": PARTS, "images": [Image.new("RGB", (8, 8))]}, [("user", "<image>What is it?")], ""),
        ({"prompt": "What is it?", "image": Image.new("RGB", (8, 8))}, [("user", "What is it?")], ""),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_columns_of_trl_become_those_of_a_privileged_set(
    columns: dict[str, Any], prompt: list[tuple[str, str]], answer: str, stream: bool
) -> None:
    dataset: Any = DatasetDict({"train": Dataset.from_list([columns])})
    if stream:
        dataset = {"train": dataset["train"].to_iterable_dataset()}
    made = without_privilege(dataset)["train"]
    assert isinstance(made, IterableDataset if stream else Dataset)
    row = next(iter(made))
    assert [(message["role"], message["content"]) for message in row["prompt"]] == prompt
    assert (row["id"], row["answer"], row["task"]) == ("0", answer, "open")
    assert [load_image(image).size for image in row["images"]] == [(8, 8)] * ("image" in columns or "images" in columns)
    assert not any(row["privileged"].values())


def test_what_is_no_prompt_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^dataset: has neither prompt nor messages, but text$"):
        without_privilege(Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(RecordError, match=r"^row 1: prompt\[0\]\.role "):
        without_privilege(Dataset.from_dict({"prompt": [MESSAGES[:1], [{"role": "robot", "content": "Hi."}]]}))
    with pytest.raises(ConfigurationError, match=r"^task: "):
        without_privilege(Dataset.from_dict({"prompt": ["a"]}), task="maths")
