"""Every shipped configuration parses, names what exists, and travels in the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dopd_vl.commands.quickstart import QuickstartConfig
from dopd_vl.configuration import as_yaml, read_config
from dopd_vl.nano.source import NanoSource
from dopd_vl.training import preflight
from dopd_vl.training.config import TrainConfig
from privileged.config import PrepareConfig
from privileged.source_cards import resolve_source
from privileged.sources import SOURCES

ROOT = Path(__file__).parents[1]
TRAIN = sorted([*(ROOT / "configs" / "vlm").glob("*.yaml"), *(ROOT / "configs" / "llm").glob("*.yaml")])
PREPARE = sorted((ROOT / "configs" / "prepare").glob("*.yaml"))


@pytest.mark.parametrize("file", TRAIN, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_training_config_parses_and_names_what_exists(file: Path) -> None:
    from dopd_vl.training.arguments import DopdConfig

    config = read_config(TrainConfig, ["--config", str(file)], "test")
    preflight.build_objective(config)
    preflight.check_variants(config)
    preflight.check_trl_fields(config.trl, (), DopdConfig)
    loop = config.training
    assert loop.per_device_train_batch_size * loop.gradient_accumulation_steps % loop.num_generations == 0


@pytest.mark.parametrize("file", PREPARE, ids=lambda p: p.name)
def test_preparation_config_parses(file: Path) -> None:
    config = read_config(PrepareConfig, ["--config", str(file)], "test")
    config.check()
    settings, _ = resolve_source(config.source, {**SOURCES, "nano": NanoSource})
    assert settings.kind in {*SOURCES, "nano"}


def test_quickstart_config_parses() -> None:
    config = read_config(QuickstartConfig, ["--config", "configs/quickstart.yaml"], "test")
    assert read_config(TrainConfig, ["--config", config.train_config], "test").model.student == "nano:vision-student"


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
    ):
        assert f"dopd_vl/{name}" in names
    assert "privileged/variants.py" in names
    assert {"privileged/prompts/hints.md", "privileged/prompts/check_hints.md"} <= names
    # An installed copy finds them there, from any folder.
    code = (
        "from dopd_vl.resources import find_config, find_model;"
        "from privileged.source_cards import find_card;"
        "print(find_config('configs/quickstart.yaml')); print(find_model('nano:vision-student'));"
        "print(find_card('virl39k'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); {code}"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert all(str(tmp_path / "installed" / "dopd_vl") in line for line in found.stdout.splitlines())
