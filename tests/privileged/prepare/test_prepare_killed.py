"""Killed with SIGKILL anywhere and run again, a preparation ends with the very bytes of an undisturbed one."""

import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from privileged_samples import files_of, jsonl_settings

CONTEXT = multiprocessing.get_context("forkserver")
# The children start from a server that has imported what they need, and so within milliseconds.
CONTEXT.set_forkserver_preload(
    ["privileged.prepare.prepare", "datasets", "pyarrow.parquet", "rich.console", "supervision"]
)


def run(config, dies_at=None):
    """Prepare; with `dies_at`, kill this process at that step: before or after each rename and removal of a file."""
    from rich.console import Console

    from privileged.prepare.prepare import prepare

    if dies_at is not None:
        steps = 0

        def dying(function):
            def wrapped(*arguments, **options):
                nonlocal steps
                for act in (lambda: None, lambda: function(*arguments, **options)):
                    act()
                    if steps == dies_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    steps += 1

            return wrapped

        os.replace = dying(os.replace)
        Path.unlink = dying(Path.unlink)
    prepare(config, console=Console(file=io.StringIO()))


def run_in_child(config, dies_at=None, seconds=None):
    """The exit code of a child that prepares; after `seconds` it is killed from outside."""
    child = CONTEXT.Process(target=run, args=(config, dies_at))
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
    return child.exitcode


def settings(root, output, **changes):
    return jsonl_settings(root, output, **{"shard_size": 25, "sample": 3, **changes})


@pytest.fixture(scope="module")
def undisturbed(jsonl_world, tmp_path_factory):
    """The files of an undisturbed run, and its seconds."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run_in_child(settings(jsonl_world, output)) == 0  # the first child also starts the server
    start = time.monotonic()
    assert run_in_child(settings(jsonl_world, output.with_name("timed"))) == 0
    return files_of(output), time.monotonic() - start


def kill_at_every_step(root, folder):
    """Runs in a child. For each step a run that dies there and one that goes on, both in processes of their own."""
    step = 0
    while (code := forked(config := settings(root, folder / str(step)), dies_at=step)) != 0:
        assert code == -signal.SIGKILL
        assert forked(config) == 0
        step += 1


def forked(config, dies_at=None):
    """The exit code of `run` in a fork of this process, which may hold no threads."""
    process = os.fork()
    if process == 0:
        try:
            run(config, dies_at)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_killed_at_every_step_it_ends_with_the_same_bytes(jsonl_world, undisturbed, tmp_path):
    child = CONTEXT.Process(target=kill_at_every_step, args=(jsonl_world, tmp_path))
    child.start()
    child.join()
    assert child.exitcode == 0
    steps = sorted(int(path.name) for path in tmp_path.iterdir())
    assert len(steps) > 16, "2 shards, each with two renames, and the opening and closing files"
    for step in steps:
        assert files_of(tmp_path / str(step)) == undisturbed[0], f"killed at step {step}"


def test_killed_again_and_again_it_ends_with_the_same_bytes(jsonl_world, undisturbed, tmp_path):
    """Each attempt gets some steps further than the last, and all of them work on one folder."""
    config = settings(jsonl_world, tmp_path / "out")
    for step in range(0, 30, 3):
        if run_in_child(config, dies_at=step) == 0:
            break
    run(config)
    assert files_of(tmp_path / "out") == undisturbed[0]


def test_killed_at_random_moments_it_ends_with_the_same_bytes(jsonl_world, undisturbed, tmp_path):
    moments = random.Random(0)
    for attempt in range(6):
        config = settings(jsonl_world, tmp_path / str(attempt))
        run_in_child(config, seconds=moments.uniform(0, undisturbed[1]))
        run(config)
        assert files_of(tmp_path / str(attempt)) == undisturbed[0], f"attempt {attempt}"


def test_killed_while_overwriting_it_ends_with_the_new_records_only(jsonl_world, undisturbed, tmp_path):
    for step in (1, 4, 9):
        output = tmp_path / str(step)
        run(settings(jsonl_world, output, limit=5))
        config = settings(jsonl_world, output, overwrite=True)
        assert run_in_child(config, dies_at=step) == -signal.SIGKILL
        run(config)
        assert files_of(output) == undisturbed[0], f"killed at step {step}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks the processes up in /proc")
def test_a_killed_run_leaves_no_worker_behind(jsonl_world, tmp_path):
    script = (
        "import json, sys\n"
        "from privileged.prepare.prepare import PrepareConfig, SourceConfig, prepare\n"
        "if __name__ == '__main__':\n"
        "    source, output = sys.argv[1:]\n"
        "    prepare(PrepareConfig(SourceConfig(**json.loads(source)), output, workers=1, shuffle=True))\n"
    )
    (tmp_path / "slow.py").write_text(script)
    (tmp_path / "pipe.jsonl").write_text('{"prompt": "a?", "answer": "b"}\n' * 200_000)
    source = json.dumps({"kind": "jsonl", "options": {"path": str(tmp_path / "pipe.jsonl")}, "default_task": "exact"})
    command = [sys.executable, str(tmp_path / "slow.py"), source, str(tmp_path / "out")]
    parent = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}, stderr=subprocess.DEVNULL
    )
    try:
        workers = wait_for(lambda: [pid for pid in children(parent.pid) if b"spawn_main" in command_line(pid)])
        assert workers
    finally:
        parent.kill()
        parent.wait()
    assert wait_for(lambda: not any(command_line(pid) for pid in workers))


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    return condition()


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
