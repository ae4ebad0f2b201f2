"""Programs are run only where allowed, judged by their tests, and kept from harming the run."""

import json
import os
import time

import pytest

from dopd_vl.common.errors import RecordError
from dopd_vl.evaluation.code import ALLOW_CODE, program_of, verify_code
from dopd_vl.evaluation.sandbox import Limits, run_program
from dopd_vl.evaluation.verifiers import VERIFIERS, unscored_tasks
from privileged.records.code_tests import parse_tests

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
    from dopd_vl.evaluation.sandbox import _without_network

    if not _without_network():
        pytest.skip("this kernel or container gives no network namespaces")
    done = run_program("import socket\nprint([name for _, name in socket.if_nameindex()])", limits=SHORT)
    assert done.output == "['lo']\n"
    assert os.listdir("/sys/class/net") != []


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
