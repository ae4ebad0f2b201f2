"""The trainer from a script of one's own, with an objective and a view processor that live outside the package."""

import json
from pathlib import Path

from tests.commands import run_script
from tests.pages import ROOT, blocks_of

EXAMPLE = ROOT / "examples" / "from_python.py"


def block_with(page: str, words: str) -> str:
    """The page's only block of Python that holds these words."""
    (code,) = (block for block in blocks_of(page, "python") if words in block)
    return code


def run_in(folder: Path, script: Path) -> str:
    result = run_script(script, cwd=folder, timeout=900)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_example_trains_and_saves_a_student(vision_data: Path, tmp_path: Path) -> None:
    code = EXAMPLE.read_text(encoding="utf-8")
    assert code.count("max_steps=20") == 1
    (tmp_path / "script.py").write_text(code.replace("max_steps=20", "max_steps=2"), encoding="utf-8")
    (tmp_path / "runs" / "data").mkdir(parents=True)
    (tmp_path / "runs" / "data" / "nano-vision-train").symlink_to(vision_data)
    run_in(tmp_path, tmp_path / "script.py")
    student = tmp_path / "runs" / "from-python" / "student"
    assert (student / "model.safetensors").is_file()
    assert json.loads((student / "config.json").read_text())["model_type"] == "qwen3_vl"


SCRIPT = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from dopd_vl import DopdConfig, DopdTrainer
from my_methods import TranscriptViews, UnsureTokens
from privileged.dataset import load_privileged

models, data = {models!r}, {data!r}
model = AutoModelForCausalLM.from_pretrained(models + "/text-student")
before = model.get_output_embeddings().weight.detach().clone()
tokenizer = AutoTokenizer.from_pretrained(models + "/text-student", padding_side="left")
trainer = DopdTrainer(
    model,
    models + "/text-teacher",
    DopdConfig("run", max_steps=2, per_device_train_batch_size=2, num_generations=1, max_completion_length=4,
               learning_rate=1e-2, logging_steps=1, report_to="none", save_strategy="no", gradient_checkpointing=False),
    load_privileged(data),
    processing_class=tokenizer,
    objective=UnsureTokens(entropy_above=0.1),
    view_processor=TranscriptViews(model.config, tokenizer),
)
trainer.train()
rows = [row for row in trainer.state.log_history if "token_share/unsure" in row]
assert len(rows) == 2, trainer.state.log_history
assert all(0 < row["token_share/unsure"] <= 1 for row in rows), rows
assert (trainer.model.get_output_embeddings().weight != before).any(), "nothing was learnt"
shown = tokenizer.decode(trainer.views.view(trainer.train_dataset[0]).prompt_ids)
assert shown.startswith("User: ") and shown.endswith("Assistant: "), shown
print("took", trainer.state.global_step, "steps with", trainer.objective.name)
"""


def test_an_objective_and_a_processor_from_outside_the_package_train(
    nano_models: Path, text_data: Path, tmp_path: Path
) -> None:
    own = block_with("docs/architecture.md", "class UnsureTokens") + block_with(
        "docs/views.md", "class TranscriptViews"
    )
    (tmp_path / "my_methods.py").write_text(own, encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT.format(models=str(nano_models), data=str(text_data)), encoding="utf-8")
    assert "took 2 steps with unsure-tokens" in run_in(tmp_path, tmp_path / "script.py")
