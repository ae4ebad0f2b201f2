"""Every shipped configuration parses, names what exists, and travels in the wheel."""

import math
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors import safe_open
from transformers import AutoConfig, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration

from benchmarks.nano.ladder import LADDERS
from dopd_vl.commands.plan import main as plan
from dopd_vl.commands.quickstart import QuickstartConfig, as_study
from dopd_vl.common.configuration import as_yaml, read_config
from dopd_vl.common.http import is_address
from dopd_vl.common.resources import find_model
from dopd_vl.evaluation.config import EvaluateConfig
from dopd_vl.nano.source import NanoSource
from dopd_vl.planning.catalogue import known_models, published
from dopd_vl.planning.config import PlanConfig
from dopd_vl.studies.config import StudyConfig
from dopd_vl.studies.config import check as check_study
from dopd_vl.train_config import TrainConfig
from dopd_vl.training.checks import check
from privileged.prepare.config import PrepareConfig
from privileged.sources.cards import resolve_source
from privileged.sources.sources import SOURCES

ROOT = Path(__file__).parents[1]
TRAIN = sorted([*(ROOT / "configs" / "vlm").glob("*.yaml"), *(ROOT / "configs" / "llm").glob("*.yaml")])
ACCELERATE = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
# Every published pair: the main one's settings, then what another pair, fewer GPUs or adapters change.
TEXT = ["llm/qwen3-8b-to-1.7b"]
PAIRS = {
    "8B to 1.7B": TEXT,
    "8B to 0.6B": [*TEXT, "llm/pairs/8b-to-0.6b"],
    "4B to 1.7B": [*TEXT, "llm/pairs/4b-to-1.7b"],
    "4B to 0.6B": [*TEXT, "llm/pairs/4b-to-0.6b"],
    "1.7B to 0.6B": [*TEXT, "llm/pairs/1.7b-to-0.6b"],
    "VL 8B to 2B": ["vlm/qwen3-vl-8b-to-2b"],
}
PREPARE = sorted((ROOT / "configs" / "prepare").glob("*.yaml"))
EVERY = sorted(path for path in (ROOT / "configs").rglob("*") if path.is_file())
READERS = {
    "evaluate": EvaluateConfig,
    "llm": TrainConfig,
    "lora.yaml": TrainConfig,
    "prepare": PrepareConfig,
    "quickstart.yaml": QuickstartConfig,
    "study": StudyConfig,
    "vlm": TrainConfig,
}


def named_models(value: Any, key: str = "") -> Iterator[str]:
    """What stands under `student` and `teacher` anywhere in a file, as a name or a list of names; no addresses."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from named_models(inner, str(name).rpartition(".")[2])
    elif key in ("student", "teacher"):
        yield from (name for name in (value if isinstance(value, list) else [value]) if not is_address(name))


MODELS = sorted({name for file in EVERY for name in named_models(yaml.safe_load(file.read_text(encoding="utf-8")))})


@pytest.mark.parametrize("file", EVERY, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_config_is_read_by_its_command(file: Path) -> None:
    room = file.relative_to(ROOT / "configs").parts[0]
    if room == "accelerate":
        assert file in ACCELERATE
    else:
        read_config(READERS[room], ["--config", str(file)], "test")


def test_every_file_of_a_pair_belongs_to_a_pair_that_is_tested() -> None:
    pairs = {f"llm/pairs/{file.stem}" for file in (ROOT / "configs" / "llm" / "pairs").iterdir()}
    assert pairs == {name for names in PAIRS.values() for name in names if "/pairs/" in name}


@pytest.mark.parametrize("file", TRAIN, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_training_config_parses_and_names_what_exists(file: Path) -> None:
    check(read_config(TrainConfig, ["--config", str(file)], "test"))


def stacked(*names: str) -> TrainConfig:
    return read_config(TrainConfig, [word for name in names for word in ("--config", name)], "test")


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("gpus", [8, 1])
@pytest.mark.parametrize("lora", [False, True])
def test_every_pair_keeps_the_papers_settings_on_one_gpu_and_on_eight(pair: str, gpus: int, lora: bool) -> None:
    family = PAIRS[pair][0].partition("/")[0]
    one = [f"{family}/one-gpu"] if gpus == 1 else []
    config = stacked(*PAIRS[pair], *one, *(["lora"] if lora else []))
    loop, (rollouts, steps) = config.training, {"llm": (128, 200), "vlm": (64, 300)}[family]
    assert loop.per_device_train_batch_size * loop.gradient_accumulation_steps * gpus == rollouts
    assert (loop.max_steps, loop.num_generations, loop.lr_scheduler_type) == (steps, 4, "cosine")
    assert loop.learning_rate == (5e-5 if lora else 5e-6)
    assert (config.model.lora is not None) == lora
    teacher, student = pair.removeprefix("VL ").split(" to ")
    assert config.model.teacher is not None
    assert f"-{teacher}" in config.model.teacher
    assert f"-{student}" in config.model.student


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("runs/")])
def test_every_model_of_every_config_is_built_from_its_own_architecture(name: str) -> None:
    if name.startswith("nano:"):
        folder = Path(find_model(name))
        described = AutoConfig.from_pretrained(folder)
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118 - not a dict
        parameters = sum(math.prod(shape) for shape in shapes.values())
    else:
        described, parameters = published(known_models()[name])
        assert described.get_text_config().vocab_size == 151_936
    cls = Qwen3VLForConditionalGeneration if described.model_type == "qwen3_vl" else Qwen3ForCausalLM
    with torch.device("meta"):
        model = cls(described)
    model.tie_weights()
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert model.config.architectures == [cls.__name__]


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("runs/")])
def test_every_model_that_is_made_here_is_made_by_a_command_on_a_page_or_in_a_config(name: str) -> None:
    pages = [page.read_text(encoding="utf-8") for page in [*(ROOT / "docs").glob("*.md"), *EVERY]]
    family, _, level = Path(name).name.rpartition("-")
    ladder = name.startswith("runs/ladder/") and level.isdigit()
    made = rf"nano ladder --output runs/ladder --family {family}(?![\w-])" if ladder else Path(name).name
    assert any(re.search(made, page) for page in pages), made
    assert not ladder or family in LADDERS


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    ("gpus", "parallel"),
    [("8x80", "ddp"), ("8x80", "fsdp2"), ("8x80", "zero2"), ("8x80", "zero3"), ("8x141", "ddp"), ("1x80", "single")],
)
def test_every_pair_fits_as_it_is_shipped_with_evaluations(pair: str, gpus: str, parallel: str) -> None:
    family = PAIRS[pair][0].partition("/")[0]
    files = [*PAIRS[pair], *([f"{family}/one-gpu"] if gpus.startswith("1x") else [])]
    words = [word for name in files for word in ("--config", name)]
    assert plan([*words, "--gpus", gpus, "--parallel", parallel, "--data.eval", "held-out"]) == 0


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2", "zero2", "zero3"])
def test_six_gpus_train_while_two_serve_a_teacher_that_none_has_room_for(
    parallel: str, capsys: pytest.CaptureFixture[str]
) -> None:
    six = ["--config", "vlm/qwen3-vl-32b-to-2b", "--gpus", "6x80", "--data.eval", "held-out", "--parallel", parallel]
    assert plan(six) == 0
    assert "entries a token" in capsys.readouterr().out
    if parallel == "ddp":
        assert plan([*six, "--model.teacher", "Qwen/Qwen3-VL-32B-Instruct"]) == 1
    config = stacked("vlm/qwen3-vl-32b-to-2b")
    assert is_address(config.model.teacher or "")
    smaller, loop = stacked(*PAIRS["VL 8B to 2B"]), config.training
    assert (loop.max_steps, loop.learning_rate) == (smaller.training.max_steps, smaller.training.learning_rate)
    assert loop.per_device_train_batch_size * loop.gradient_accumulation_steps * 6 == 72
    assert (config.data, config.privilege, config.objective) == (smaller.data, smaller.privilege, smaller.objective)


@pytest.mark.parametrize("name", ["llm/nano", "vlm/nano"])
def test_the_nano_runs_fit_a_small_gpu(name: str) -> None:
    assert plan(["--config", name, "--gpus", "1x8"]) == 0


@pytest.mark.parametrize("file", ACCELERATE, ids=lambda p: p.name)
def test_accelerate_takes_its_config(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert (config.num_processes, config.mixed_precision) == (8, "bf16")
    ways = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type == ways[file.stem]
    # As `accelerate launch` reads it: what a file says becomes the launcher's defaults.
    words = ["--config_file", str(file), "-m", "dopd_vl.cli", "train"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.use_fsdp == (file.stem == "fsdp2")
    assert args.use_deepspeed == file.stem.startswith("zero")
    if args.use_fsdp:
        assert int(args.fsdp_version) == 2
    if args.use_deepspeed:
        assert args.zero_stage == int(file.stem[-1])


def test_the_plan_knows_the_ways_to_launch() -> None:
    ways = set(get_args(get_type_hints(PlanConfig)["parallel"]))
    assert ways == {"auto", "single", *(file.stem for file in ACCELERATE)}


@pytest.mark.parametrize("file", PREPARE, ids=lambda p: p.name)
def test_preparation_config_parses(file: Path) -> None:
    config = read_config(PrepareConfig, ["--config", str(file)], "test")
    config.check()
    settings, _ = resolve_source(config.source, {**SOURCES, "nano": NanoSource})
    assert settings.kind in {*SOURCES, "nano"}


def test_the_quickstart_is_a_study_of_equal_budgets() -> None:
    config = read_config(QuickstartConfig, ["--config", "configs/quickstart.yaml"], "test")
    runs = check_study(as_study(config))
    assert {run.stages[0][1].training.max_steps for run in runs} == {100}
    assert {run.stages[0][1].model.student for run in runs} == {"nano:vision-learner"}
    assert [run.cell.name for run in runs][:3] == ["vanilla OPD", "privileged OPD", "DOPD-anchored"]


def test_a_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    config = read_config(TrainConfig, ["--config", str(TRAIN[0]), "--objective.settings.beta_light", "0.5"], "test")
    assert config.objective.settings == {"beta_light": 0.5}
    (tmp_path / "resolved.yaml").write_text(as_yaml(config))
    assert read_config(TrainConfig, ["--config", str(tmp_path / "resolved.yaml")], "test") == config


def test_the_wheel_carries_configs_data_and_prompts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    for name in (
        "configs/quickstart.yaml",
        "configs/vlm/nano.yaml",
        "data/nano/digits/digits.png",
        "data/sources/virl39k.yaml",
        "data/models/qwen3-8b.yaml",
        "data/gpus.yaml",
        "configs/accelerate/fsdp2.yaml",
        "configs/llm/pairs/4b-to-0.6b.yaml",
    ):
        assert f"dopd_vl/{name}" in names
    assert {"privileged/rendering/variants.py", "privileged/prepare/sample.html.jinja"} <= names
    assert {"privileged/prompts/hints.md", "privileged/prompts/check_hints.md"} <= names
    # An installed copy finds them there, from any folder.
    code = (
        "from dopd_vl.common.resources import find_config, find_model;"
        "from privileged.sources.cards import find_card;"
        "print(find_config('configs/quickstart.yaml')); print(find_model('nano:vision-student'));"
        "print(find_card('virl39k'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); {code}"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert all(str(tmp_path / "installed" / "dopd_vl") in line for line in found.stdout.splitlines())
