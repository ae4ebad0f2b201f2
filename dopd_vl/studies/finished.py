"""What of a study is done and is of its settings: by what runs began with and scores were made from, not by names.

A run is done when each of its stages has a whole student, and its metrics and rollouts as they were written; its scores
count while they are those of these models, on these data, asked in this way. What is not as the study would make it now
is told apart: a run of other settings, which is refused or made anew as a whole, and something damaged or out of date,
which the study puts right by going on.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dopd_vl.common.digests import dataset_parts, model_parts, unsealed
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import read_json
from dopd_vl.common.resources import find_model
from dopd_vl.common.run_layout import (
    CONFIG_FILE,
    FACTS_FILE,
    FINGERPRINT_FILE,
    METRICS_FILE,
    ROLLOUTS_FILE,
    STUDENT_FOLDER,
)
from dopd_vl.run_folder.checkpoints import read_mark
from dopd_vl.run_folder.fingerprint import difference
from dopd_vl.run_folder.kept_files import check_unchanged
from dopd_vl.run_folder.resume import changed_settings, made_a_step
from dopd_vl.train_config import TrainConfig

Parts = Mapping[str, Any]


class Contents:
    """Digests of data sets and models, each computed once however many runs use it."""

    def __init__(self) -> None:
        self.data: Callable[[str, int | None], Parts] = cache(_data_parts)
        self.model: Callable[[str], Parts] = cache(_model_parts)

    def of_scoring(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What the scores of a job are made from; the models must be there."""
        return {
            "models": {name: self.model(model) for name, model in job["models"].items()},
            "data": {name: self.data(folder, size) for name, (folder, size) in job["score"].items()},
            **{key: job[key] for key in ("variants", "max_new_tokens", "batch_size")},
            **({} if job["dtype"] == "auto" else {"dtype": job["dtype"]}),
        }

    def of_training(self, config: TrainConfig, keys: Mapping[str, Any]) -> dict[str, Parts]:
        """What a run would begin with now, by those keys of its fingerprint that name data and models."""
        found: dict[str, Parts] = {}
        if "data.train" in keys:
            found["data.train"] = self.data(config.data.train, None)
        if "data.eval" in keys and config.data.eval is not None:
            found["data.eval"] = self.data(config.data.eval, config.data.eval_size)
        for key, name in config.model.in_process().items():
            if key in keys:
                found[key] = self.model(name)
        return found


def _data_parts(folder: str, size: int | None) -> Parts:
    from dopd_vl.training.run import load_examples

    return dataset_parts(load_examples(folder, size))


def _model_parts(name: str) -> Parts:
    from dopd_vl.models import load_config

    # The configuration of a hub model alone is looked at; a folder has its files.
    return model_parts(name, None if Path(find_model(name)).is_dir() else load_config(name, "model"))


def changes(config: TrainConfig, contents: Contents) -> Iterator[str]:
    """What one run folder has other than this configuration, in words that begin with the key.

    Nothing where it holds no run, or where it is not known: what is damaged is for the run itself to say.
    """
    folder = Path(config.output_dir)
    if not made_a_step(folder) or _damage(folder, [CONFIG_FILE]):
        return
    try:
        for key, before, now in changed_settings(folder / CONFIG_FILE, config):
            yield f"{key} was {before!r} and is {now!r} now"
    except UserError:
        return
    saved = unsealed(read_json(folder / FINGERPRINT_FILE))
    if saved is None or _damage(folder, [FINGERPRINT_FILE]):
        return
    of_content = {key: value for key, value in saved.items() if key.startswith(("data.", "model."))}
    changed = difference(of_content, contents.of_training(config, of_content))
    if changed is not None:
        yield changed


def unfinished_stage(config: TrainConfig) -> str | None:
    """Why a run folder is not that of a run that came to its end; None where it is."""
    folder = Path(config.output_dir)
    if read_mark(folder / STUDENT_FOLDER, FACTS_FILE) is None:
        return f"{folder / STUDENT_FOLDER} is not whole"
    return _damage(folder, [CONFIG_FILE, FINGERPRINT_FILE, METRICS_FILE, ROLLOUTS_FILE])


def _damage(folder: Path, names: list[str]) -> str | None:
    try:
        gone = check_unchanged(folder, names)
    except UserError as error:
        return str(error)
    return f"{folder / gone[0]} is gone" if gone else None


def outdated_scores(file: Path, job: Mapping[str, Any], contents: Contents) -> str | None:
    """Why scores do not count; None where they do. The job's models must be whole."""
    saved = unsealed(read_json(file))
    if saved is None or "made_from" not in saved:
        told = "damaged, or of an earlier version" if file.exists() else "missing"
        return f"{file} is {told}"
    now = contents.of_scoring(job)
    for key, before in saved["made_from"].items():
        if before == now[key]:
            continue
        if key in ("models", "data"):
            return f"{file}: {difference(before, now[key]) or key}"
        return f"{file}: {key} was {before!r} and is {now[key]!r} now"
    return None


def load_scores(file: Path) -> dict[str, Any]:
    """Model -> data set -> variant -> scores, of a file that counts."""
    scores: dict[str, Any] = (read_json(file) or {})["scores"]
    return scores
