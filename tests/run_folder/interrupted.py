"""`dopd-vl train` in a process of its own, to which something happens at a named moment.

A moment is "before" or "after" an act: "optimizer step 3", "torch.save checkpoint-2/optimizer.pt", "replace
checkpoint-2/complete.json", "rename best", "rmtree checkpoint-2", "append metrics.jsonl", ... (paths are those in the
run folder). What can happen: SIGKILL, a file of which only half is there and then SIGKILL, or anything of a test's own.
"""

import contextlib
import io
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# The children start from a server that has imported what they need, and so within milliseconds.
CONTEXT.set_forkserver_preload(["dopd_vl.training.run", "dopd_vl.cli", "yaml", "rich.console", "trl.trainer.utils"])

Moment = tuple[str, str]


def kill(file: Path | None = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def halve_and_kill(file: Path | None = None) -> None:
    assert file is not None
    assert file.stat().st_size > 1
    os.truncate(file, file.stat().st_size // 2)
    kill()


def train(
    config: Path,
    folder: Path,
    *options: str,
    at: Moment | None = None,
    happens: Callable[[Path | None], None] = kill,
) -> tuple[int, str]:
    """Exit code (-9 for killed) and what the command said, errors last."""
    said = config.with_suffix(".said")
    said.write_text("")
    argv = ["train", "--config", str(config), "--output_dir", str(folder), *options]
    child = CONTEXT.Process(target=_command, args=(argv, folder, said, at, happens))
    child.start()
    child.join(300)
    assert child.exitcode is not None, "the command hangs"
    return child.exitcode, said.read_text()


def _command(argv: list[str], folder: Path, said: Path, at: Moment | None, happens: Any) -> None:
    import torch

    from dopd_vl import cli

    torch.set_num_threads(1)
    if at is not None:
        _watch(folder, at, happens)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        code = cli.main(argv)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said.write_text(output.getvalue() + errors.getvalue())
    os._exit(code)


def _watch(folder: Path, moment: Moment, happens: Callable[[Path | None], None]) -> None:
    import torch
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import PreTrainedModel, TrainerState

    from dopd_vl.run_folder import folder as callbacks
    from dopd_vl.training import student_copies as teachers

    def wrap(owner: Any, name: str, act: str, file: Callable[..., Any]) -> None:
        function = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            path = file(*arguments)
            label = f"{act} {path.relative_to(folder) if isinstance(path, Path) and path != folder else path}"
            if moment == ("before", label):
                happens(path if isinstance(path, Path) else None)
            result = function(*arguments, **options)
            if moment == ("after", label):
                happens(path if isinstance(path, Path) else None)
            return result

        setattr(owner, name, wrapped)

    def inside(path: Any) -> Path | str:
        return Path(path) if isinstance(path, str | os.PathLike) and Path(path).is_relative_to(folder) else "elsewhere"

    steps = iter(range(1, 1000))
    wrap(AcceleratedOptimizer, "step", "optimizer step", lambda *_: next(steps))
    wrap(PreTrainedModel, "save_pretrained", "save_pretrained", lambda model, path, *_: inside(path))
    wrap(torch, "save", "torch.save", lambda value, path, *_: inside(path))
    wrap(TrainerState, "save_to_json", "state", lambda state, path: inside(path))
    wrap(teachers, "save_file", "save_file", lambda tensors, path: inside(path))
    wrap(os, "replace", "replace", lambda source, target: inside(target))
    wrap(Path, "rename", "rename", lambda source, target: inside(target))
    wrap(shutil, "rmtree", "rmtree", lambda path, *_: inside(path))
    wrap(callbacks, "append_jsonl", "append", lambda path, rows: inside(path))
