"""The run folder when a run begins, and when it goes on: the same run, or a refusal that names what changed."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import broadcast_object_list

from dopd_vl.common.configuration import as_yaml
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import exclusive, make_folder, read_json, read_rows, write_atomically, write_json, writing_to
from dopd_vl.common.http import is_address
from dopd_vl.common.run_layout import (
    BEST_FOLDER,
    CONFIG_FILE,
    DIGESTS_FILE,
    FACTS_FILE,
    FINGERPRINT_FILE,
    METRICS_FILE,
    STUDENT_FOLDER,
)
from dopd_vl.run_folder.checkpoints import has_checkpoints, last_whole_checkpoint, remove_newer
from dopd_vl.run_folder.fingerprint import FORMAT, Fingerprint, difference
from dopd_vl.run_folder.kept_files import check_rollouts, kept_in, mend_best, restore
from dopd_vl.train_config import TrainConfig, in_todays_keys

_MAY_CHANGE = ("resume", "output_dir", "health", "model.server", "training.report_to", "training.push_to_hub")
"""Keys that a run may be taken up again with another value of."""

_LIMITS = ("data.max_prompt_length",)
"""And these, which decide no more than which examples are passed over: one set too low must not end a run for good."""

_LENGTHS = ("training.max_steps", "training.num_train_epochs")
"""And these, which may be raised where the steps so far would have been the same."""

_WITHOUT_LENGTH = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau")
"""Schedules whose learning rates do not depend on how long the run is to be."""


@contextmanager
def opened_on_every_rank(
    config: TrainConfig, fingerprint: Callable[[], Fingerprint], rank: int, say: Callable[[str], None]
) -> Iterator[Path | None]:
    """`open_folder` by the first process, which holds the folder for itself while this lasts, however it ends.

    The other processes hear what came of it, and do not take its new run for an old one.

    Raises:
        UserError: as `open_folder`, on every rank; or another run is writing to the folder.
    """
    folder = Path(config.output_dir)
    with ExitStack() as stack:
        outcome: Path | UserError | None = None
        if rank == 0:
            try:
                make_folder(folder)
                stack.enter_context(exclusive(folder, "run"))
                outcome = open_folder(folder, config, fingerprint(), say)
            except UserError as error:
                outcome = UserError(str(error))
            except OSError as error:
                outcome = UserError(f"{error.filename}: {error.strerror}")
        outcome = broadcast_object_list([outcome])[0]
        if isinstance(outcome, UserError):
            raise outcome
        yield outcome


def open_folder(folder: Path, config: TrainConfig, fingerprint: Fingerprint, say: Callable[[str], None]) -> Path | None:
    """Prepare the run folder; with `resume`, the checkpoint to go on from, if there is one.

    A run that never came to the end of a step, or had no usable example in any, has no claim on its folder: there is
    nothing of it to go on with.

    Raises:
        UserError: the folder cannot be written, holds a run that is not to go on, or one that began otherwise.
    """
    if made_a_step(folder):
        if not config.resume:
            raise UserError(f"output_dir: {folder} already holds a run; give --resume true to go on, or another folder")
        checkpoint = last_whole_checkpoint(folder)
        mended = [
            *_mended(folder / CONFIG_FILE, checkpoint, lambda file: _check_config(file, config)),
            *_mended(folder / FINGERPRINT_FILE, checkpoint, lambda file: _check_content(file, fingerprint)),
        ]
        gone = check_rollouts(folder, checkpoint)
        with writing_to(folder):
            best = mend_best(folder, checkpoint)
            for file in mended:
                write_atomically(folder / file.name, file.read_bytes())
            removed = remove_newer(folder, checkpoint)
            restore(folder, checkpoint)
            limits = _changed_limits(folder / CONFIG_FILE, config)
            length = _changed_length(folder / CONFIG_FILE, config)
            if _check_config(folder / CONFIG_FILE, config) or limits or length:
                (folder / DIGESTS_FILE).unlink(missing_ok=True)  # the next checkpoint's has the new one
                _write_config(folder, config)
        if removed:
            say(f"{folder}: not whole, and removed: {', '.join(removed)}")
        for file in mended:
            say(f"{folder / file.name}: damaged, and put right from {file.parent.parent.name}")
        for told in (gone, best, limits, length):
            if told is not None:
                say(told)
        how = "no checkpoint yet, begins anew" if checkpoint is None else f"goes on from {checkpoint.name}"
        say(f"{folder}: {how}")
        return checkpoint
    with writing_to(folder):
        if (folder / CONFIG_FILE).exists():  # its evaluation before the first step is not the new run's
            for name in (BEST_FOLDER, f".{BEST_FOLDER}.stale"):
                shutil.rmtree(folder / name, ignore_errors=True)
            remove_newer(folder, None)  # of a run that learned nothing
            restore(folder, None)
        write_json(folder / FINGERPRINT_FILE, fingerprint)
        # Last: a folder without it holds no run yet.
        _write_config(folder, config)
    return None


def _write_config(folder: Path, config: TrainConfig) -> None:
    """Whether a command took the run up is no part of the run."""
    write_atomically(folder / CONFIG_FILE, as_yaml(replace(config, resume=False)))


def made_a_step(folder: Path) -> bool:
    """Whether a folder holds a run that has anything to go on with."""
    best = folder / BEST_FOLDER
    try:
        rows = read_rows(folder / METRICS_FILE)
        facts = [read_json(best / FACTS_FILE) or {}] if best.exists() else []
    except UserError:  # what is damaged is not known to be of nothing
        return True
    usable = [row["usable_rollouts"] for row in rows if "usable_rollouts" in row]
    if usable and not any(usable):
        return False  # every example was refused, as by a limit that is another now
    if has_checkpoints(folder) or (folder / STUDENT_FOLDER).exists():
        return True
    return any(row.get("step") != 0 for row in [*rows, *facts])


def _mended(file: Path, checkpoint: Path | None, check: Callable[[Path], object]) -> Iterator[Path]:
    """The checkpoint's copy of a file of the run folder, where that passes a check and the file itself does not.

    Raises:
        UserError: what the check says of the file, where no copy is better.
    """
    try:
        check(file)
    except UserError as error:
        copy = kept_in(checkpoint, file.name)
        if copy is None:
            raise
        try:
            check(copy)
        except UserError:
            raise error from None
        yield copy


def changed_settings(file: Path, config: TrainConfig) -> list[tuple[str, Any, Any]]:
    """What a run's config.yaml and a configuration differ in and may not: keys with the file's value and the other.

    Raises:
        UserError: the file cannot be read.
    """
    before, now = _flat(in_todays_keys(_saved(file))), _flat(yaml.safe_load(as_yaml(config)))
    return [
        (key, before.get(key), now.get(key))
        for key in sorted({*before, *now})
        if _differ(before.get(key), now.get(key)) and not any(f"{key}.".startswith(f"{free}.") for free in _MAY_CHANGE)
    ]


def _differ(before: Any, now: Any) -> bool:
    """Whether two values of a key mean different runs. Where a served teacher runs is no matter: which model it is
    stands in the fingerprint."""
    moved = all(isinstance(value, str) and is_address(value) for value in (before, now))
    return not moved and bool(before != now)


def _saved(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"resume: {file} cannot be read ({reason}); begin anew in another folder") from error


def _check_config(file: Path, config: TrainConfig) -> bool:
    """Whether the folder's configuration has keys of an earlier version."""
    _changed_length(file, config)
    for key, before, now in changed_settings(file, config):
        if key not in (*_LIMITS, *_LENGTHS):
            raise UserError(
                f"resume: {key} was {before!r} in {file} and is {now!r} now; a run goes on with the settings that it "
                "began with"
            )
    saved = _saved(file)
    return bool(in_todays_keys(saved) != saved)


def _changed_limits(file: Path, config: TrainConfig) -> str | None:
    """What is to be said of limits that are others now."""
    changed = [
        f"{key} was {before} and is {now} now" for key, before, now in changed_settings(file, config) if key in _LIMITS
    ]
    where = f"{file.parent}: {', '.join(changed)}"
    return f"{where}; other examples are passed over from here on, in evaluations too" if changed else None


def _changed_length(file: Path, config: TrainConfig) -> str | None:
    """What is to be said of a run that is to be longer now.

    Raises:
        UserError: it would not be one that was that long from the start.
    """
    changed = {key: (before, now) for key, before, now in changed_settings(file, config) if key in _LENGTHS}
    for key, (before, now) in changed.items():
        if len(changed) > 1 or before is None or now is None or not 0 < before < now:
            raise UserError(f"resume: {key} was {before} in {file} and is {now} now; it can only be raised")
        schedule, said = config.training.lr_scheduler_type, config.trl.get("lr_scheduler_kwargs") or {}
        if schedule not in _WITHOUT_LENGTH and not (schedule == "warmup_stable_decay" and "num_stable_steps" in said):
            raise UserError(
                f"resume: {key} was {before} in {file} and is {now} now, and a {schedule} schedule of that length has "
                "other learning rates from the start; begin anew in another folder with --model.student "
                f"{file.parent / STUDENT_FOLDER}. Runs begun with training.lr_scheduler_type: constant can be longer"
            )
        return f"{file.parent}: longer now: {key} was {before} and is {now}, the schedule {schedule} as before"
    return None


def _check_content(file: Path, fingerprint: Fingerprint) -> None:
    saved = read_json(file)
    if saved is None or saved.get("format") != FORMAT:
        raise UserError(
            f"resume: {file} does not say what the run began with (missing, damaged, or of another version of this "
            "toolkit); begin anew in another folder"
        )
    # As it would be read again, so that what differs is the content and not the types of JSON.
    changed = difference(saved, json.loads(json.dumps(fingerprint)))
    if changed is not None:
        raise UserError(f"resume: {changed}; a run goes on with what it began with ({file})")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".strip(".")).items()}
