"""The processor that docs/views.md adds works as written, plugged into the trainer from outside."""

import re
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from dopd_vl import DopdConfig, DopdTrainer
from dopd_vl.training.run import load_examples

PAGE = Path(__file__).parents[2] / "docs" / "views.md"


def processor_of_the_page() -> type:
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "class " in block)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["TranscriptViews"]


def test_a_users_own_processor_trains(nano_models: Path, text_data: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(nano_models / "text-student")
    teacher = AutoModelForCausalLM.from_pretrained(nano_models / "text-teacher")
    tokenizer = AutoTokenizer.from_pretrained(nano_models / "text-student", padding_side="left")
    views = processor_of_the_page()(model.config, tokenizer)
    args = DopdConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, max_completion_length=4, use_cpu=True,
        report_to="none", save_strategy="no", gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DopdTrainer(
        model, teacher, args, load_examples(str(text_data)), processing_class=tokenizer, view_processor=views
    )
    trainer.train()
    example = trainer.train_dataset[0]
    shown = tokenizer.decode(views.view(example).prompt_ids)
    assert shown.startswith("User: ")
    assert shown.endswith("Assistant: ")
    assert trainer.state.global_step == 1
