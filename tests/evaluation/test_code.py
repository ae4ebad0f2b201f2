"""Programs are run only where allowed, judged by their tests, and kept from harming the run."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dopd_vl.common.errors import RecordError
from dopd_vl.evaluation.code import ALLOW_CODE, program_of, verify_code
from dopd_vl.evaluation.sandbox import Limits, run_program
from dopd_vl.evaluation.verifiers import VERIFIERS, unscored_tasks
from privileged.records.code_tests import parse_tests
from tests.commands import ROOT

STDIN = json.dumps({"inputs": ["1 2\n", "5 7"], "outputs": ["3\n", "12"]})
CALLS = json.dumps({"fn_name": "add", "inputs": [[1, 2], [5, 7]], "outputs": [3, [12]]})
HARNESS = json.dumps(
    {
        "import_prefix": "import math\n",
        "test_code": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(5, 7) == 12\n",
        "entry_point": "Solution().add",
    }
)
ASSERTS = json.dumps({"assert_case": ["assert add(1, 2) == 3", "assert add(5, 7) == 12"]})
ADD = "def add(a, b):\n    return a + b\n"
METHOD = "class Solution:\n    def add(self, a: List[int], b):\n        return a + b\n"
READ = "a, b = map(int, input().split())\nprint(a + b)\n"
SHORT = Limits(seconds=2.0)


def fenced(program: str) -> str:
    return f"I add them.\n```python\n{program}\n```\nThat is all."


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_CODE, "1")


def test_without_the_switch_nothing_is_run_and_nothing_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW_CODE, raising=False)
    monkeypatch.setattr("dopd_vl.evaluation.code.run_program", lambda *args: pytest.fail("a program was run"))
    assert verify_code(fenced(READ), STDIN) is None
    assert set(unscored_tasks()) == {"open", "code"}
    assert VERIFIERS["open"]("anything", "anything") is None


@pytest.mark.parametrize(
    ("tests", "right", "wrong"),
    [
        (STDIN, READ, READ.replace("+", "*")),
        (CALLS, ADD, ADD.replace("+", "*")),
        (CALLS, METHOD, METHOD.replace("+", "-")),
        (HARNESS, METHOD, METHOD.replace("+", "-")),
        (ASSERTS, ADD, ADD.replace("+", "-")),
    ],
    ids=["stdin", "calls", "method", "harness", "asserts"],
)
def test_right_programs_pass_and_wrong_ones_do_not(allowed: None, tests: str, right: str, wrong: str) -> None:
    assert set(unscored_tasks()) == {"open"}
    assert verify_code(fenced(right), tests, SHORT) is True
    assert verify_code(fenced(wrong), tests, SHORT) is False


@pytest.mark.parametrize("tests", [STDIN, CALLS, HARNESS, ASSERTS], ids=["stdin", "calls", "harness", "asserts"])
@pytest.mark.parametrize("program", ["import sys; sys.exit(0)", "import os; os._exit(0)", "def add(:", ""])
def test_leaving_early_or_not_parsing_is_not_right(allowed: None, tests: str, program: str) -> None:
    assert verify_code(fenced(program), tests, SHORT) is False


def test_a_response_without_a_program_is_wrong(allowed: None) -> None:
    assert verify_code("The sum.", STDIN) is False
    assert program_of("```js\n1\n```") is None
    assert program_of("```python\n1\n```\nbetter:\n```\n2\n```") == "2\n"


def test_a_future_import_and_a_main_block_do_no_harm(allowed: None) -> None:
    main = 'if __name__ == "__main__":\n    print(add(*input().split()))\n'
    program = f"from __future__ import annotations\n{ADD}{main}"
    assert verify_code(fenced(program), CALLS, SHORT) is True
    assert verify_code(fenced(program), ASSERTS, SHORT) is True


def test_numbers_with_a_fraction_may_differ_in_the_last_digits_and_whole_ones_may_not(allowed: None) -> None:
    tests = json.dumps({"inputs": [""], "outputs": ["0.3333333\nyes"]})
    assert verify_code(fenced("print(1/3)\nprint('yes ')"), tests, SHORT) is True
    assert verify_code(fenced("print(0.334)\nprint('yes')"), tests, SHORT) is False
    big = json.dumps({"inputs": [""], "outputs": ["10000000000000001"]})
    assert verify_code(fenced("print(10**16)"), big, SHORT) is False
    assert verify_code(fenced("def f(): return 1"), '{"fn_name": "f", "inputs": [[]], "outputs": [true]}') is False
    half = '{"fn_name": "f", "inputs": [[]], "outputs": [0.5]}'
    assert verify_code(fenced("def f(): return 10 ** 400"), half, SHORT) is False
    assert verify_code(fenced("def f(): return 0.5000000001"), half, SHORT) is True


def test_an_endless_loop_is_ended_in_time() -> None:
    start = time.monotonic()
    for source in ("while True: pass", "import time; time.sleep(60)"):
        assert run_program(source, limits=Limits(seconds=0.5)).code in (None, -9)
    assert time.monotonic() - start < 5


def test_a_memory_bomb_meets_its_limit() -> None:
    source = "x = bytearray(200 * 1024 * 1024)\nprint(len(x))"
    assert run_program(source, limits=Limits(memory=512 * 1024 * 1024)).code == 0
    assert run_program(source, limits=Limits(memory=128 * 1024 * 1024)).code == 1


def test_a_program_can_start_no_process() -> None:
    source = (
        "import os\n"
        "started = 0\n"
        "for _ in range(50):\n"
        "    try:\n"
        "        if os.fork() == 0:\n"
        "            os._exit(0)\n"
        "        started += 1\n"
        "    except OSError:\n"
        "        pass\n"
        "print(started)\n"
    )
    assert run_program(source, limits=SHORT).output == "0\n"


def test_two_programs_run_at_once() -> None:
    outer = [run_program("print(1)", limits=SHORT) for _ in range(2)]
    assert [done.output for done in outer] == ["1\n", "1\n"]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        sources = ["import time; time.sleep(0.2); print(2)"] * 4
        assert {done.output for done in pool.map(run_program, sources)} == {"2\n"}


def test_a_flood_of_output_is_cut() -> None:
    done = run_program("while True: print('x' * 1000)", limits=Limits(seconds=5, output=100_000))
    assert done.code not in (0, None)
    assert len(done.output) <= 100_000


def test_a_program_sees_no_environment_and_an_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "sesame")
    done = run_program("import os\nprint(sorted(os.environ), sorted(os.listdir('.')))", limits=SHORT)
    assert done.code == 0
    assert "SECRET" not in done.output
    assert done.output.endswith("['program.py', 'stdin', 'stdout']\n")


def test_a_program_has_no_network_where_the_kernel_lets_us() -> None:
    done = run_program("import socket\nprint([name for _, name in socket.if_nameindex()])", limits=SHORT)
    if done.output != "['lo']\n" and subprocess.run(["unshare", "--map-root-user", "--net", "true"]).returncode:
        pytest.skip("this kernel or container gives no network namespaces")
    assert done.output == "['lo']\n"
    assert os.listdir("/sys/class/net") != []


def python_for_anyone() -> str:
    """An interpreter that another user can run, too."""
    for python in (sys.executable, "/usr/bin/python3"):
        folders = [*Path(os.path.realpath(python)).parents, Path(sys.prefix if python == sys.executable else "/usr")]
        if os.path.exists(python) and all(folder.stat().st_mode & 0o005 == 0o005 for folder in folders):
            test = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(test, check=False).returncode == 0:
                return python
    pytest.skip("no interpreter here that a plain user can run")


def run_as(user: str, program: str, folder: Path, **confinement: bool) -> str:
    """What the program prints, run by `run_program` of a process of that user whose environment holds a secret."""
    script = (
        "import json, os, sys\n"
        "from dopd_vl.evaluation import sandbox\n"
        "sandbox._confinement = lambda: json.loads(sys.argv[1])\n"
        "done = sandbox.run_program(sys.argv[2], str(os.getpid()), sandbox.Limits(seconds=2))\n"
        "print(done.output, end='')\n"
    )
    is_root = os.geteuid() == 0
    if user == "root" and not is_root:
        pytest.skip("is not run by root")
    nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
    python = sys.executable if user == "root" or not is_root else python_for_anyone()
    folder.chmod(0o777)
    done = subprocess.run(
        [python, "-c", script, json.dumps(confinement), program],
        env={"PYTHONPATH": str(ROOT), "SECRET": "sesame", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        **(nobody if user == "plain" and is_root else {}),
    )
    assert list(folder.iterdir()) == []
    return done.stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that any user can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


WAYS = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize(("namespaces", "landlock"), WAYS)
@pytest.mark.parametrize("user", ["root", "plain"])
def test_nothing_of_a_program_outlives_its_time(user: str, namespaces: bool, landlock: bool, open_folder: Path) -> None:
    program = (
        "import os, time\n"
        "try: os.setresuid(0, 0, 0)\n"
        "except OSError: print('stays who it is')\n"
        "try:\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        os.fork()\n"
        "        time.sleep(60)\n"
        "except OSError: print('starts no process')\n"
        "print(flush=True)\n"
        "time.sleep(60)\n"
    )
    printed = run_as(user, program, open_folder, namespaces=namespaces, landlock=landlock)
    assert printed == "stays who it is\nstarts no process\n\n"
    # A process that was left behind would have its folder there.
    places = [os.readlink(link) for link in Path("/proc").glob("[0-9]*/cwd") if os.access(link, os.R_OK)]
    assert [place for place in places if place.startswith(str(open_folder))] == []


LANDLOCK = ctypes.CDLL(None).syscall(444, None, 0, 1) if sys.platform == "linux" else -1
"""What of it this kernel has."""


@pytest.mark.parametrize(("namespaces", "landlock"), WAYS[:3])
@pytest.mark.parametrize("user", ["root", "plain"])
def test_a_program_reads_no_secret_and_signals_nobody(
    user: str, namespaces: bool, landlock: bool, open_folder: Path
) -> None:
    if not namespaces and LANDLOCK < 6:
        pytest.skip("this kernel has no Landlock, or one that knows of no signals")
    program = (
        "import os, pathlib\n"
        "for place in (f'/proc/{input()}/environ', '/proc/self/../*/environ'):\n"
        "    for file in pathlib.Path('/').glob(place[1:]):\n"
        "        try:\n"
        "            if b'sesame' in file.read_bytes(): print('read', file)\n"
        "        except OSError: pass\n"
        "for other in {os.getppid(), *range(2, 40000)} - {0, 1, os.getpid()}:\n"
        "    try: os.kill(other, 0)\n"
        "    except OSError: continue\n"
        "    print('can end', other)\n"
        "print('done')\n"
    )
    assert run_as(user, program, open_folder, namespaces=namespaces, landlock=landlock) == "done\n"


@pytest.mark.skipif(LANDLOCK < 1, reason="this kernel has no Landlock")
@pytest.mark.parametrize("user", ["root", "plain"])
def test_a_program_reads_and_writes_its_folder_alone(user: str, open_folder: Path) -> None:
    theirs = open_folder.parent / f"{open_folder.name}.theirs"
    program = (
        "import os\n"
        f"for name, mode in (({str(theirs)!r}, 'r'), ({str(theirs)!r}, 'w'), ('/etc/passwd', 'r'), ('/tmp/x', 'w')):\n"
        "    try: open(name, mode)\n"
        "    except PermissionError: continue\n"
        "    print(mode, name)\n"
        "os.mkdir('here')\n"
        "open('here/a', 'w').write('b')\n"
        "print(open('here/a').read())\n"
    )
    theirs.write_text("a")
    theirs.chmod(0o666)
    try:
        assert run_as(user, program, open_folder, namespaces=False, landlock=True) == "b\n"
    finally:
        theirs.unlink()


def test_orphans_in_sessions_of_their_own_are_ended() -> None:
    script = (
        "import os, time\n"
        "from dopd_vl.evaluation import keeper\n"
        "keeper.LIBC.prctl(36, 1, 0, 0, 0)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.setsid()\n"
        "    for _ in range(3):\n"
        "        if os.fork() == 0:\n"
        "            os.setsid()\n"
        "            os.fork()\n"
        "            time.sleep(60)\n"
        "    os._exit(0)\n"
        "assert keeper.wait(child, 20) == 0\n"
        "assert len(list(keeper.children())) >= 3\n"
        "keeper.end_all(child)\n"
        "assert list(keeper.children()) == []\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_whatever_a_program_leaves_in_its_folder_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    nested = "import os\nfor _ in range(1500):\n    os.mkdir('a')\n    os.chdir('a')\nprint('made')\n"
    locked = "import os\nos.makedirs('a/b')\nos.chmod('a', 0)\nprint('made')\n"
    for program in (nested, locked):
        assert run_program(program).output == "made\n"
        assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_the_result_is_not_followed() -> None:
    done = run_program("import os\nos.symlink('/etc/passwd', 'result.json')", limits=SHORT)
    assert (done.code, done.result) == (0, None)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("[", "no JSON"),
        ("3", "in no known form"),
        ("{}", "need inputs and outputs"),
        ('{"inputs": ["1"], "outputs": []}', "lists of one length"),
        ('{"inputs": [1], "outputs": ["2"]}', "must be texts"),
        ('{"inputs": ["x"], "outputs": ["2"], "fn_name": "f"}', "neither a list nor JSON"),
        ('{"inputs": [[]], "outputs": ["2"], "fn_name": "os.system"}', "no name of a function"),
        ('[{"input": "1"}]', "must hold mappings"),
        ('[{"input": "1", "output": "1", "testtype": "functional"}]', "does not name its function"),
        ('{"assert_case": []}', "must be a list of texts"),
        ('{"test_code": "x"}', "must be texts, and not empty"),
    ],
)
def test_tests_in_no_known_form_are_refused(answer: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        parse_tests(answer)


def test_livecodebench_lists_are_read() -> None:
    cases = parse_tests('[{"input": "1", "output": "2", "testtype": "stdin"}]')
    assert cases == parse_tests('{"inputs": ["1"], "outputs": ["2"]}')
    calls = parse_tests('{"fn_name": "f", "inputs": ["[1, 2]\\n3"], "outputs": ["5"]}')
    assert calls == parse_tests('{"fn_name": "f", "inputs": [[[1, 2], 3]], "outputs": [5]}')
