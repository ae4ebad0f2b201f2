"""Names in a run folder, told from others."""

from pathlib import Path

from dopd_vl.common.run_layout import checkpoint_folder, checkpoint_step, name_of_model


def test_a_checkpoint_is_found_again_by_its_step_and_nothing_else_is_one() -> None:
    assert checkpoint_step(checkpoint_folder(Path("runs/x"), 120)) == 120
    assert [checkpoint_step(Path(name)) for name in ("checkpoint-best", "student", "checkpoint-", "12")] == [-1] * 4


def test_a_runs_student_is_called_after_its_run() -> None:
    assert [name_of_model(Path(name)) for name in ("runs/x/student", "runs/x/best", "models/y")] == ["x", "x", "y"]
