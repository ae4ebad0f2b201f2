"""Whether a data set can be trained on: its columns and rows, models and teachers for it, enough for a step."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from datasets import Dataset, IterableDataset
from rich.console import Console
from transformers import PreTrainedConfig

from dopd_vl.common.errors import ConfigurationError, RecordError, UserError, nearest
from dopd_vl.common.terminal import tell
from dopd_vl.evaluation.verifiers import VERIFIERS, unscored_tasks
from dopd_vl.objectives import Objective
from dopd_vl.objectives.base import needs_teacher
from dopd_vl.train_config import ModelSettings
from dopd_vl.training.teachers import Teachers
from dopd_vl.views import VISION_PROCESSORS
from privileged.records.fields import chat_message, item_list

NEEDED = ("id", "prompt", "answer", "task", "privileged")
"""Columns that every privileged data set has; the others may be left out."""


def check_columns(dataset: Any, name: str) -> None:
    """Whether a data set, or each of several by their names, has the columns that a policy is shown and scored by.

    Raises:
        ConfigurationError: one lacks some, or brings tools; the message names the columns.
    """
    if isinstance(dataset, Mapping):
        for part, inner in dataset.items():
            check_columns(inner, f"{name}[{part!r}]")
    if not isinstance(dataset, Dataset | IterableDataset):
        return
    columns = dataset.column_names or list(next(iter(dataset), dict.fromkeys(NEEDED)))
    if "tools" in columns:
        raise ConfigurationError(f"{name}: has a column tools, and rollouts call no tools; leave it out")
    missing = [column for column in NEEDED if column not in columns]
    if missing:
        raise ConfigurationError(
            f"{name}: lacks {', '.join(missing)}, has {', '.join(columns)}; privileged.without_privilege(dataset) "
            "makes a data set of prompts alone one that has no privilege, for objectives that need none (opd)"
        )


def check_rows(dataset: Any, name: str) -> None:
    """Whether every row can be shown and scored, as far as that is known without its images. A stream is not looked at.

    Raises:
        RecordError: one cannot; the message names the first such row, its column, and how many more there are.
    """
    if isinstance(dataset, Mapping):
        for part, inner in dataset.items():
            check_rows(inner, f"{name}[{part!r}]")
    if not isinstance(dataset, Dataset):
        return
    faults = []
    plain = dataset.select_columns(["id", "prompt", "answer", "task"]).with_format("arrow")
    for start in range(0, len(plain), _ROWS_AT_A_TIME):
        for number, row in enumerate(plain[start : start + _ROWS_AT_A_TIME].to_pylist(), start):
            faults += [f"row {number}, column {column}: {fault}" for column, fault in _faults(row)]
    if faults:
        more = f"; {len(faults) - 1} more are faulty" if len(faults) > 1 else ""
        raise RecordError(f"{name}: {faults[0]}{more}")


_ROWS_AT_A_TIME = 1000


def _faults(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for column in ("id", "answer", "task"):
        if not isinstance(row[column], str):
            yield column, f"must be a text, not {row[column]!r}"
    if isinstance(row["task"], str) and row["task"] not in VERIFIERS:
        yield "task", f"no verifier for {row['task']!r}, {nearest(row['task'], VERIFIERS)}"
    try:
        messages = item_list(row["prompt"], "it")
        if not messages:
            yield "prompt", "holds no message"
        for place, message in enumerate(messages):
            chat_message(message, place)
    except RecordError as error:
        yield "prompt", str(error)


def check_data(dataset: Dataset, key: str, settings: ModelSettings, models: Mapping[str, PreTrainedConfig]) -> None:
    """The data must be readable by the models and scorable."""
    if len(dataset) == 0:
        raise UserError(f"{key}: the data set is empty")
    unknown = sorted(set(dataset.unique("task")) - set(VERIFIERS))
    if unknown:
        raise UserError(f"{key}: no verifier for task {unknown[0]!r}, known: {', '.join(VERIFIERS)}")
    keys, teachers = list(settings.teacher_names()), Teachers.of_settings(settings)
    for named, model in models.items():
        if model.model_type in VISION_PROCESSORS:
            continue

        def reads(example: Mapping[str, Any], named: str = named) -> bool:
            place = teachers.of(example)
            return named == "model.student" or (place is not None and keys[place] == named)

        with_images = first_with_images(dataset, reads)
        if with_images is not None:
            raise UserError(
                f"{key}: example {with_images!r} has images, but {named} is a text-only model "
                f"({model.model_type}); use a vision-language model or a text data set"
            )


def check_taught(settings: ModelSettings, dataset: Dataset, objective: Objective) -> None:
    """Whether every example has a teacher, and every teacher that names data an example."""
    if not settings.teachers or not needs_teacher(objective):
        return
    present = {column: set(map(str, dataset.unique(column))) for column in ("source", "task")}
    for name, teacher in settings.teachers.items():
        for column, named in (("source", teacher.sources), ("task", teacher.tasks)):
            for value in named:
                if value not in present[column]:
                    raise ConfigurationError(
                        f"model.teachers.{name}.{column}s: no example of data.train has {column} {value!r}, "
                        f"{nearest(value, present[column])}"
                    )
    if settings.teacher is None:
        named = {value for teacher in settings.teachers.values() for value in (*teacher.sources, *teacher.tasks)}
        for source, task in zip(dataset["source"], dataset["task"], strict=True):
            if not {source, task} & named:
                raise ConfigurationError(
                    f"model.teacher: none given, and none of model.teachers teaches examples of source {source!r} and "
                    f"task {task!r}"
                )


def shows_images(dataset: Any, teachers: Teachers, policy: str) -> bool:
    """Whether any example of a data set that this teacher teaches may have an image; of a stream that is not known."""
    if not isinstance(dataset, Dataset):
        return True
    place = teachers.policies.index(policy)
    return first_with_images(dataset, lambda example: teachers.of(example) == place) is not None


def first_with_images(dataset: Dataset, of_those: Callable[[Mapping[str, Any]], bool]) -> str | None:
    """The id of the first example with an image, among those for which `of_those` holds, without decoding any."""
    if "images" not in dataset.column_names:
        return None
    known = [column for column in ("id", "source", "task") if column in dataset.column_names]
    table = dataset.select_columns([*known, "images"]).with_format("arrow")
    for batch in table.iter(batch_size=1000):
        counts = batch["images"].combine_chunks().value_lengths().to_pylist()
        for example, count in zip(batch.select(known).to_pylist(), counts, strict=True):
            if count and of_those(example):
                return str(example["id"])
    return None


def check_steps(settings: Any, examples: int, processes: int, key: str) -> None:
    """Whether a run takes a step at all.

    Args:
        settings: a `DopdConfig`.
        examples: of the training set.
        key: what names that set.

    Raises:
        ConfigurationError: it does not; the message has the numbers.
    """
    batch, accumulated = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    group = settings.num_generations
    prompts = _prompts_a_step(settings, processes)
    if examples < prompts:
        raise ConfigurationError(
            f"{key}: its {examples} examples make no step, which takes {prompts} "
            f"(per_device_train_batch_size={batch} * gradient_accumulation_steps={accumulated} * {processes} "
            f"process(es) / num_generations={group}); lower these settings or give more examples"
        )
    if settings.max_steps < 0 and not settings.num_train_epochs > 0:
        raise ConfigurationError(
            f"num_train_epochs={settings.num_train_epochs} with max_steps={settings.max_steps} makes no step; give one "
            "of them above 0"
        )


def length_of(settings: Any, examples: int, processes: int) -> str:
    """How long a run is, in words that say what decides it; arguments as of `check_steps`."""
    prompts = _prompts_a_step(settings, processes)
    each_pass = examples // prompts
    if settings.max_steps > 0:
        passes = settings.max_steps / each_pass
        return f"{settings.max_steps} steps by max_steps, {passes:.3g} passes over {examples} examples"
    steps, passes = math.ceil(settings.num_train_epochs * each_pass), settings.num_train_epochs
    return f"{steps} steps by num_train_epochs, {passes:g} passes over {examples} examples"


def _prompts_a_step(settings: Any, processes: int) -> int:
    rollouts = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * processes
    return int(rollouts // settings.num_generations)


def say_what_is_not_scored(dataset: Any, console: Console) -> None:
    """One line for each task in the data whose responses get no verdict."""
    present = set(dataset.unique("task"))
    for task, reason in unscored_tasks().items():
        if task in present:
            tell(console, f"responses to tasks {task!r} are not scored: {reason}")
