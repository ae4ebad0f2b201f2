"""What `from dopd_vl import ...` gives, and that asking for the package alone brings in nothing heavy."""

import subprocess
import sys

import dopd_vl


def test_every_public_name_is_there_and_is_that_of_its_module() -> None:
    from dopd_vl.objectives.dopd_loss import dopd_loss
    from dopd_vl.training.trainer import DopdTrainer

    assert all(getattr(dopd_vl, name) is not None for name in dopd_vl.__all__)
    assert dopd_vl.dopd_loss is dopd_loss
    assert dopd_vl.DopdTrainer is DopdTrainer


def test_the_package_alone_and_the_report_bring_in_no_torch() -> None:
    code = "import sys, dopd_vl, dopd_vl.reporting.page, dopd_vl.reporting.inspector; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
