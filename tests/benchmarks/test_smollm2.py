"""The pretrained world's records, its smaller model and its commands, without the packages that it is made from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.nano.sft import Phase, Recipe
from benchmarks.smollm2 import __main__ as cli
from benchmarks.smollm2 import data, dose, models
from benchmarks.smollm2.layers import influences, keep_layers, most_influential
from benchmarks.smollm2.models import Making
from benchmarks.smollm2.records import arithmetic_question, distinct, divide, math_question, pattern, sequence_question
from benchmarks.smollm2.sums import Unworkable, work_out
from dopd_vl.common.errors import UserError
from dopd_vl.common.resources import model_folder
from dopd_vl.evaluation.verifiers import verify_number

QUIET = Console(quiet=True)


def math_row(program: str, hints: list[str], right: str, question: str = "how much is it ?") -> dict[str, Any]:
    """As examples/real_data/bigbench.py writes one."""
    listed = f"(A) 7777\n(B) {right}\n(C) 8888"
    return {
        "id": "elementary-math-qa-1",
        "prompt": f"{question}\n{listed}\nAnswer with the letter of one option.",
        "answer": "B",
        "task": "choice",
        "privileged": {"hints": hints, "hint_summary": program},
    }


def entry(rule: str, sequence: list[int], index: int = 0) -> dict[str, Any]:
    """As reasoning-gym's `number_sequence` gives one."""
    return {
        "question": ", ".join(map(str, sequence[:-1])) + ", ?",
        "answer": str(sequence[-1]),
        "metadata": {"source_index": index, "rule": rule, "sequence": sequence},
    }


def test_a_math_question_is_open_and_is_worked_out_step_by_step() -> None:
    row = math_row("divide(90, subtract(1, divide(1, 4)))", ["a", "b", "c"], "120 pages")
    assert math_question(row) is None  # three steps
    hints = ["Divide 90 by 4.", "Subtract 2 from result."]
    record = math_question(math_row("subtract(divide(90, 4), 2)", hints, "20.5 $"))
    assert record is not None
    assert record["prompt"] == "how much is it ?"
    assert record["response"] == "Divide 90 by 4: 90 / 4 = 22.5. Subtract 2 from result: 22.5 - 2 = 20.5. Answer: 20.5"
    executed = ["Divide 90 by 4: 90 / 4 = 22.5.", "Subtract 2 from result: 22.5 - 2 = 20.5."]
    assert record["privileged"] == {"hints": hints, "hints_executed": executed}
    assert verify_number(record["response"], record["answer"])


@pytest.mark.parametrize(
    ("program", "right", "question"),
    [
        ("add(1, 2)", "4", "how much ?"),  # the program does not come to the option
        ("add(1, 2)", "3 : 1", "how much ?"),  # an option of two numbers
        ("add(1, 2)", "3", "which of the following is it ?"),
        ("add(1, 2)", "3", "long " * 50),
        ("divide(1, 3)", "0.33", "how much ?"),  # not exactly
        ("divide(1, 0)", "3", "how much ?"),
        ("power(2, 3)", "8", "how much ?"),
        ("multiply(2000, 2)", "4000", "how much ?"),
        ("__import__('os').system('true')", "3", "how much ?"),
        ("add(1, ", "3", "how much ?"),
    ],
)
def test_a_math_question_without_a_short_and_exact_working_is_left_out(program: str, right: str, question: str) -> None:
    assert math_question(math_row(program, ["Add 1 to 2."], right, question)) is None


def test_a_program_is_read_and_not_run() -> None:
    with pytest.raises(Unworkable, match="no operation"):
        work_out("open('x', 'w')", 2)


@pytest.mark.parametrize(
    ("rule", "sequence", "response"),
    [
        ("add -4", [9, 5, 1, -3, -7], "Subtract 4: -3 - 4 = -7. Answer: -7"),
        ("double then add 3", [1, 5, 13, 29, 61], "Double it: 29 * 2 = 58. Add 3: 58 + 3 = 61. Answer: 61"),
        ("add previous", [1, 2, 3, 5, 8], "Add the number before it: 5 + 3 = 8. Answer: 8"),
        ("halve", [64, 32, 16, 8, 4], "Halve it: 8 / 2 = 4. Answer: 4"),
        ("square", [2, 4, 16, 256], "Square it: 16 * 16 = 256. Answer: 256"),
    ],
)
def test_a_sequences_rule_is_its_hint_and_is_worked_out(rule: str, sequence: list[int], response: str) -> None:
    record = sequence_question(entry(rule, sequence))
    assert record is not None
    assert record["response"] == response
    assert (
        " ".join(record["privileged"]["hints"])
        == ". ".join(step.split(":")[0] for step in record["response"].split(". ")[:-1]) + "."
    )


@pytest.mark.parametrize(
    ("rule", "sequence"),
    [("halve", [10, 5, 2, 1, 0]), ("add 300", [1, 301, 601, 901, 1201]), ("", [1, 2, 3, 4]), ("add 1", [1, 2, 3, 9])],
)
def test_a_sequence_whose_rule_does_not_lead_to_its_answer_in_small_numbers_is_left_out(
    rule: str, sequence: list[int]
) -> None:
    assert sequence_question(entry(rule, sequence)) is None


def test_prompts_are_kept_once_and_hints_do_not_say_the_answer() -> None:
    told = sequence_question(entry("add 8", [-8, 0, 8]))
    kept = sequence_question(entry("add 8", [1, 9, 17, 25]))
    assert distinct([told, kept, None, kept]) == [kept]


def test_splits_are_disjoint_in_patterns_and_follow_the_seed() -> None:
    records = [{"id": str(n), "prompt": f"{'a' * (n // 3)} what is {n} ?"} for n in range(90)]
    sizes = {"held-out": 10, "train": 30}
    splits = divide(records, sizes, seed=0, alike=pattern)
    assert {name: len(some) for name, some in splits.items()} == sizes
    assert not set(map(pattern, splits["held-out"])) & set(map(pattern, splits["train"]))
    assert splits == divide(records, sizes, seed=0, alike=pattern)
    assert splits != divide(records, sizes, seed=1, alike=pattern)
    with pytest.raises(UserError, match="train: only 80 of 81"):
        divide(records, {"held-out": 10, "train": 81}, seed=0, alike=lambda record: record["id"])


def llama(layers: int = 4) -> LlamaForCausalLM:
    words = models.AutoTokenizer.from_pretrained(model_folder("text-student"))
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            initializer_range=0.2,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    ).eval()


def test_a_layer_that_changes_nothing_has_no_influence_and_is_left_out_first(tmp_path: Path) -> None:
    model = llama()
    idle = model.model.layers[2]
    with torch.no_grad():  # both of its branches add nothing
        idle.self_attn.o_proj.weight.zero_()
        idle.mlp.down_proj.weight.zero_()
    batch = {"input_ids": torch.randint(5, 50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    measured = influences(model, [batch, batch])
    assert measured[2] == pytest.approx(0, abs=1e-6)
    assert all(influence > 1e-4 for place, influence in enumerate(measured) if place != 2)
    assert measured == pytest.approx(influences(model, [batch]))
    whole = model(**batch).logits
    keep_layers(model, most_influential(measured, 3))
    assert torch.allclose(model(**batch).logits, whole, atol=1e-5)
    model.save_pretrained(tmp_path / "smaller")
    smaller = LlamaForCausalLM.from_pretrained(tmp_path / "smaller").eval()
    assert smaller.config.num_hidden_layers == 3
    told = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(smaller.generate(**batch, **told), model.generate(**batch, **told))  # its cache is in order


def test_padding_has_no_part_in_the_influence() -> None:
    model = llama()
    ids = torch.randint(5, 50, (1, 6))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    bare = influences(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    assert influences(model, [{"input_ids": padded, "attention_mask": mask}]) == pytest.approx(bare, rel=1e-3)


@pytest.mark.parametrize("kept", [[], [0, 0], [4]])
def test_layers_that_are_not_there_are_refused(kept: list[int]) -> None:
    with pytest.raises(ValueError, match="of 4"):
        keep_layers(llama(), kept)


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up rows in place of the packages, and an untrained Llama in place of SmolLM2."""
    monkeypatch.chdir(tmp_path)
    rows = [
        math_row(f"add({n}, {n + 1})", [f"Add {n} to {n + 1}."], str(2 * n + 1), f"{'so ' * (n % 9)}{n} and one more ?")
        | {"id": f"elementary-math-qa-{n}"}
        for n in range(2, 60)
    ]
    monkeypatch.setattr(data, "bigbench_rows", lambda: rows)
    found = [
        entry(f"add {n}", [m, m + n, m + 2 * n, m + 3 * n], 100 * n + m) for n in range(1, 9) for m in range(20, 30)
    ]
    monkeypatch.setattr(data, "sequences", lambda seed: found)
    told = [arithmetic_question(n, {"input": f"What is {n} plus 1?", "target": str(n + 1)}) for n in range(6)]
    monkeypatch.setattr(data, "arithmetic", lambda: told)
    monkeypatch.setattr(data, "SIZES", {"held-out": 4, "tuning": 4, "train": 6, "sft": 8})
    monkeypatch.setattr(data, "ARITHMETIC", 4)
    monkeypatch.setattr(data, "HELD_OUT_MATH", 3)
    monkeypatch.setattr(models, "SCORED", 3)
    monkeypatch.setattr(models, "MEASURED", 8)
    monkeypatch.setattr(models, "LONGEST_RESPONSE", 4)
    recipe = Recipe((Phase(2, 8, {}),), batch=4, learning_rate=1e-3, warmup=1)
    making = {
        "smollm2-guide": Making("smollm2", recipe, hinted=0.5, frozen=1),
        "smollm2-learner": Making("smollm2-guide", recipe, hinted=0.5, layers=2),
    }
    monkeypatch.setattr(models, "MAKING", making)
    base = tmp_path / "runs" / "models" / "smollm2"
    llama(3).save_pretrained(base)
    words = models.AutoTokenizer.from_pretrained(model_folder("text-student"))
    PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    ).save_pretrained(base)
    return tmp_path


def test_both_commands_make_the_world_and_go_on_from_what_stands(small_world: Path) -> None:
    assert cli.main(["data"]) == 0
    lines = {file.stem: file.read_text().splitlines() for file in (small_world / "runs/real/smollm2").iterdir()}
    sizes = {"held-out-math": 3, "held-out-sequence": 4, "arithmetic": 4, "tuning": 4, "train": 12, "sft": 16}
    assert {name: len(some) for name, some in lines.items()} == sizes
    assert cli.main(["data"]) == 0  # again, and the same
    assert lines == {f.stem: f.read_text().splitlines() for f in (small_world / "runs/real/smollm2").iterdir()}
    assert {folder.name for folder in (small_world / "runs/data/smollm2").iterdir()} == sizes.keys() - {"sft"}

    assert cli.main(["models"]) == 0
    made = small_world / "runs" / "models"
    scores = {name: json.loads((made / name / "scores.json").read_text()) for name in ("smollm2", *models.MAKING)}
    for said in scores.values():
        assert said["scores"]["held-out-math"].keys() == {"none", "hints"}
        assert said["scores"]["arithmetic"].keys() == {"none"}
        assert said["scores"]["arithmetic"]["none"]["n"] == 3
    learner = scores["smollm2-learner"]
    assert len(learner["influences"]) == 3
    assert len(learner["layers"]) == 2
    assert scores["smollm2"]["parameters"] > learner["parameters"]
    guide, base = (LlamaForCausalLM.from_pretrained(made / name).model for name in ("smollm2-guide", "smollm2"))
    assert torch.equal(guide.embed_tokens.weight, base.embed_tokens.weight)
    assert torch.equal(guide.layers[0].mlp.up_proj.weight, base.layers[0].mlp.up_proj.weight)
    assert not torch.equal(guide.layers[2].mlp.up_proj.weight, base.layers[2].mlp.up_proj.weight)

    # What stands is not made again; what is lacking is.
    stood = (made / "smollm2-guide" / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(made / "smollm2-learner")
    assert cli.main(["models"]) == 0
    assert (made / "smollm2-guide" / "model.safetensors").stat().st_mtime_ns == stood
    again = json.loads((made / "smollm2-learner" / "scores.json").read_text())
    assert again["losses"] == learner["losses"]
    assert again["scores"] == learner["scores"]


def test_doses_are_measured_from_nothing_to_the_answer(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dose"]) == 2
    assert "python -m benchmarks.smollm2 models" in capsys.readouterr().err
    assert cli.main(["data"]) == 0
    assert cli.main(["models"]) == 0
    capsys.readouterr()
    assert cli.main(["dose", "--output", "dose.json"]) == 0
    found = json.loads((small_world / "dose.json").read_text())
    for name, count in (("held-out-sequence", 4), ("held-out-math", 3)):
        scores = found["scores"][name]
        assert list(scores) == list(dose.DOSES)
        assert scores["none"]["records"] == [0.0] * count
        assert all(len(scores[shown]["records"]) == count for shown in dose.DOSES)
        assert any(scores["final_answer"]["records"]), "the answer is read"
        assert scores["hints"]["records"] != scores["other_hints"]["records"]
        for reader in dose.READERS:
            assert {row["n"] for row in found["accuracy"][reader][name].values()} == {count}
    rows = capsys.readouterr().out.split("| shown ")[1].splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(dose.DOSES)


def test_what_the_user_can_mend_is_one_line(small_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 2
    assert "python -m benchmarks.smollm2 data" in capsys.readouterr().err
    assert cli.main(["data"]) == 0
    assert cli.main(["models", "--steps", "1"]) == 0
    capsys.readouterr()
    assert cli.main(["models"]) == 2
    assert "smollm2-guide: was made in another way" in capsys.readouterr().err
    (small_world / "runs/models/smollm2-guide/making.json").unlink()
    assert cli.main(["models"]) == 2
    assert "smollm2-guide: has no making.json" in capsys.readouterr().err
