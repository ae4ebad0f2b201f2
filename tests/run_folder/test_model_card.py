"""The card of a saved student says what the run recorded, and untrusted names are nothing but text in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from dopd_vl.common.files import read_jsonl
from dopd_vl.common.visible import in_card
from dopd_vl.objectives import OBJECTIVES
from dopd_vl.objectives.build import build_objective
from dopd_vl.run_folder.model_card import CardFacts, DataFacts, model_card
from dopd_vl.train_config import DataSettings, LoopSettings, LoraSettings, ModelSettings, ObjectiveSettings, TrainConfig
from dopd_vl.training.arguments import DopdConfig
from dopd_vl.training.run import RunResult, run_training
from tests.conftest import MakeTrainer


def finish(models: Path, data: Path, folder: Path, lora: LoraSettings | None = None) -> RunResult:
    loop = LoopSettings(
        max_steps=2, learning_rate=1e-3, per_device_train_batch_size=2, num_generations=1, max_completion_length=4,
        gradient_checkpointing=False, eval_steps=2, save_steps=2,
    )  # fmt: skip
    config = TrainConfig(
        output_dir=str(folder / "my-run"),
        model=ModelSettings(str(models / "text-student"), str(models / "text-teacher"), lora=lora),
        data=DataSettings(train=str(data), eval=str(data), eval_size=4),
        objective=ObjectiveSettings("dopd", {"beta_light": 0.625}),
        training=loop,
    )
    return run_training(config, console=Console(quiet=True))


@pytest.fixture(scope="module")
def finished(nano_models: Path, text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return finish(nano_models, text_data, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def adapted(nano_models: Path, text_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return finish(nano_models, text_data, tmp_path_factory.mktemp("runs"), LoraSettings(r=4, alpha=8))


def parts_of(card: str) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The front matter, and every row of the card's tables by its first cell."""
    _, front, body = card.split("---\n", 2)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in body.splitlines() if line]
    return yaml.safe_load(front), {row[0]: row[1:] for row in cells if row}


def test_student_and_best_have_cards_of_their_own_steps(finished: RunResult) -> None:
    best_step = json.loads((finished.folder / "best" / "dopd.json").read_text())["step"]
    for folder, step in ((finished.student, 2), (finished.folder / "best", best_step)):
        front, rows = parts_of((folder / "README.md").read_text(encoding="utf-8"))
        assert front == {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["dopd-vl", "distillation", "on-policy", "trl", "arxiv:2606.30626"],
        }
        assert rows["optimizer steps"] == [f"{step} of 2"]
        assert rows["base model"] == [r"text\-student"]
        assert rows["teacher"] == [r"text\-teacher"]
        assert rows[r"objective, beta\_light"] == ["0.625"], "as it was set"
        assert rows[r"objective, beta\_weak"] == ["0.3"], "as the objective has it"
        assert rows["views"] == ["teacher on privileged, student on privileged"]
        assert rows["privileged variant of the teacher"] == ["default"]
        assert rows["records"] == ["24"]
        scored = [row for row in read_jsonl(finished.folder / "metrics.jsonl") if "eval_accuracy" in row]
        last = [row for row in scored if row["step"] <= step][-1]
        assert rows["accuracy"] == [f"{scored[0]['eval_accuracy']:.4g}", f"{last['eval_accuracy']:.4g}"]
        assert rows["entropy"][1] == f"{last['eval_entropy']:.4g}"
        assert "transformers" in rows["made with"][0]


def test_a_card_does_not_tell_where_folders_lie(finished: RunResult, nano_models: Path, text_data: Path) -> None:
    card = (finished.student / "README.md").read_text(encoding="utf-8").replace("\\", "")
    for folder in (nano_models, text_data.parent, finished.folder.parent):
        assert str(folder) not in card


def test_a_saved_student_has_no_pickle(finished: RunResult) -> None:
    for folder in (finished.student, finished.folder / "best"):
        assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".md", ".safetensors"}


def test_adapters_have_a_card_of_ours_and_not_of_peft(adapted: RunResult) -> None:
    for folder in (adapted.student, adapted.folder / "best"):
        assert (folder / "adapter_model.safetensors").is_file()
        assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".md", ".safetensors"}
        card = (folder / "README.md").read_text(encoding="utf-8")
        front, rows = parts_of(card)
        assert front == {
            "library_name": "peft",
            "pipeline_tag": "text-generation",
            "tags": ["dopd-vl", "distillation", "on-policy", "trl", "arxiv:2606.30626"],
        }
        assert rows["LoRA"] == ["rank 4, alpha 8"]
        assert rows["base model"] == [r"text\-student"]
        assert str(adapted.folder.parent) not in card.replace("\\", "")
    scored = [row for row in read_jsonl(adapted.folder / "metrics.jsonl") if "eval_accuracy" in row]
    assert [row["step"] for row in scored] == [0, 2]
    rows = parts_of((adapted.student / "README.md").read_text(encoding="utf-8"))[1]
    assert rows["optimizer steps"] == ["2 of 2"]
    assert rows["entropy"] == [f"{scored[0]['eval_entropy']:.4g}", f"{scored[-1]['eval_entropy']:.4g}"]


def facts(**changed: Any) -> CardFacts:
    known = {
        "name": "run",
        "student": "nano",
        "teachers": ["guide"],
        "objective": build_objective("dopd", {}),
        "arguments": DopdConfig("run"),
        "step": 0,
        "steps": 5,
        "metrics": [],
        "train": DataFacts(),
        "eval": None,
    }
    return CardFacts(**{**known, **changed})


def test_a_hub_id_is_the_base_model_and_lora_is_told() -> None:
    front, rows = parts_of(model_card(facts(student="Qwen/Qwen3-VL-2B-Instruct", lora=(8, 64), sees_images=True)))
    assert front["base_model"] == "Qwen/Qwen3-VL-2B-Instruct"
    assert (front["library_name"], front["pipeline_tag"]) == ("peft", "image-text-to-text")
    assert rows["LoRA"] == ["rank 8, alpha 64"]
    assert rows["records"] == ["unknown: a stream"]


def test_a_plain_teacher_is_not_said_to_have_seen_more() -> None:
    _, rows = parts_of(model_card(facts(objective=build_objective("opd", {}))))
    assert rows["views"] == ["teacher on plain"]
    assert "privileged variant of the teacher" not in rows


def test_what_the_objective_showed_the_student_is_told() -> None:
    for name, shown in (("rp-opsd", "half\\_resolution"), ("dopd", "none")):
        _, rows = parts_of(model_card(facts(objective=OBJECTIVES[name]())))
        assert rows["shown to the student that learns"] == [shown]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_paper_of_dopd_and_of_the_objective_are_cited(name: str) -> None:
    front, _ = parts_of(card := model_card(facts(objective=build_objective(name, {}))))
    own = OBJECTIVES[name].paper
    assert re.fullmatch(r"\d{4}\.\d{5}", own)
    assert f"arxiv:{own}" in front["tags"]
    assert "arxiv:2606.30626" in front["tags"]
    assert f"arXiv {own}; the toolkit" in card or own == "2606.30626"
    assert "arXiv preprint arXiv:2606.30626" in card


@pytest.mark.parametrize("adapter", [False, True])
def test_what_python_saves_and_pushes_has_the_same_card(
    make_trainer: MakeTrainer, tmp_path: Path, adapter: bool
) -> None:
    """TRL's would say that it is a fine-tuned version of None, and PEFT's that there is more information needed."""
    from peft import LoraConfig

    trainer = make_trainer(
        "text", max_steps=1, peft_config=LoraConfig(r=4, target_modules=["q_proj"]) if adapter else None
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trainer.create_model_card(model_name="anything")
    for file in (tmp_path / "saved/README.md", Path(trainer.args.output_dir, "README.md")):
        front, rows = parts_of(file.read_text())
        assert "dopd-vl" in front["tags"]
        assert rows["objective"] == ["dopd"]
        assert rows["optimizer steps"] == [f"{trainer.state.global_step} of {trainer.state.max_steps}"]
        assert rows["records"] == [str(len(trainer.train_dataset))]
        assert ("LoRA" in rows) is adapter


HOSTILE = (
    "x\n---\nlicense: mit\n# <script>alert(1)</script> ![](http://a.example/b.png) [l](www.a.example) |`|\x1b[31m\u202e"
)


def test_hostile_names_stay_text_on_one_line() -> None:
    scores = [{"step": 0, "eval_accuracy": 0.25, f"eval_accuracy/{HOSTILE * 50}": 0.5}]
    card = model_card(
        facts(
            name=HOSTILE,
            student=HOSTILE,
            teachers=[HOSTILE],
            train=DataFacts(HOSTILE, 3, {HOSTILE: 3}),
            eval=DataFacts(HOSTILE, 3),
            metrics=scores,
        )
    )
    front, rows = parts_of(card)
    assert "license" not in front
    assert "base_model" not in front
    assert rows["accuracy"] == ["0.25", "0.25"]
    body = card.split("---\n", 2)[2]
    plain = re.sub(r"\\.", "", body)
    assert not re.search(r"[<>`\x1b\u202e]|!\[|\]\(|://|(?<!\w)www\.", plain)
    assert all(len(line) < 700 for line in body.splitlines())
    assert len([line for line in body.splitlines() if line.startswith("#")]) == 5, "the card's own headings"


def test_a_name_is_cut_and_escaped() -> None:
    assert in_card("nano-text/steps") == r"nano\-text/steps"
    assert len(in_card("x" * 500)) == 80
