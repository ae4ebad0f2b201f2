"""A process is ended with what it started, also one that does not heed Ctrl-C."""

import subprocess
import sys

import pytest

from dopd_vl.common.processes import end_group

STUBBORN = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.mark.parametrize("code", ["import time; print('up', flush=True); time.sleep(60)", STUBBORN])
def test_a_process_that_may_be_deaf_to_ctrl_c_has_ended(code: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    end_group(process, 0.5 if code == STUBBORN else 20.0)
    assert process.wait(20) != 0
    end_group(process, 1.0)  # one that has ended already is no error
