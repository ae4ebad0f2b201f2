"""The folder of an evaluation. It can be killed at any moment: whole batches stay, the rest is done again.

evaluation.json     what is evaluated: settings, and digests of the model and the data; written first
predictions.jsonl   one row a response, as they come
refused.jsonl       examples that could not be shown to the model
scores.json         written last: the evaluation is whole
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import UserError
from dopd_vl.common.files import (
    append_jsonl,
    make_folder,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    writing_to,
)
from dopd_vl.common.run_layout import REFUSED_FILE
from dopd_vl.evaluation.accuracy import Batch, Prediction, batch_items, count_batches
from dopd_vl.evaluation.sampling import Sampling
from dopd_vl.views import Refusal

IDENTITY_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.jsonl"
SCORES_FILE = "scores.json"
_OURS = (SCORES_FILE, IDENTITY_FILE, PREDICTIONS_FILE, REFUSED_FILE)


class EvaluationFolder:
    """See the module.

    Args:
        identity: what must not change between the parts of one evaluation.
        overwrite: discard what another evaluation left here.

    Raises:
        UserError: the folder cannot be written to, or holds another evaluation.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], overwrite: bool = False):
        self.path = path
        make_folder(path)
        identity = json.loads(json.dumps(identity))
        saved = read_json(path / IDENTITY_FILE)
        if saved is not None and saved != identity and not overwrite:
            key = next(key for key in sorted({*saved, *identity}) if saved.get(key) != identity.get(key))
            raise UserError(
                f"output_dir: {path} holds another evaluation, whose {key} was {_short(saved.get(key))} and not "
                f"{_short(identity.get(key))}; choose another folder, or give --overwrite true"
            )
        if saved != identity:
            with writing_to(path):
                for name in _OURS:
                    (path / name).unlink(missing_ok=True)
                write_json(path / IDENTITY_FILE, identity)

    def recover(self, count: int, batch_size: int, sampling: Sampling) -> tuple[list[Batch], list[int]]:
        """The batches that are whole, and the numbers of those still to do. Rows of a cut batch are dropped."""
        predictions: dict[tuple[int, int], Prediction] = {}
        for row in read_jsonl(self.path / PREDICTIONS_FILE):
            prediction = Prediction(**row)
            predictions[prediction.index, prediction.sample] = prediction
        refused = {row["index"]: Refusal(row["id"], row["reason"]) for row in read_jsonl(self.path / REFUSED_FILE)}
        done, left = [], []
        for number in range(count_batches(count, batch_size, sampling)):
            items = batch_items(number, count, batch_size, sampling)
            if all(item in predictions or item[0] in refused for item in items):
                ours = [(index, refused[index]) for index, sample in items if sample == 0 and index in refused]
                done.append(Batch(number, [predictions[item] for item in items if item in predictions], ours))
            else:
                left.append(number)
        write_jsonl(self.path / PREDICTIONS_FILE, (asdict(p) for batch in done for p in batch.predictions))
        write_jsonl(self.path / REFUSED_FILE, (_refusal(*r) for batch in done for r in batch.refused))
        return done, left

    def add(self, batch: Batch) -> None:
        """Keep a batch. A kill between the two files leaves it incomplete, and it is done again."""
        append_jsonl(self.path / REFUSED_FILE, [_refusal(*refused) for refused in batch.refused])
        append_jsonl(self.path / PREDICTIONS_FILE, [asdict(prediction) for prediction in batch.predictions])

    def finish(self, scores: Mapping[str, Any]) -> None:
        write_json(self.path / SCORES_FILE, scores)


def verdicts_of(predictions: Sequence[Prediction]) -> list[list[bool]]:
    """For each question that is scored, whether each of its responses is right."""
    questions: dict[int, list[bool]] = {}
    for prediction in predictions:
        if prediction.correct is not None:
            questions.setdefault(prediction.index, []).append(prediction.correct)
    return list(questions.values())


def _refusal(index: int, refusal: Refusal) -> dict[str, Any]:
    return {"index": index, **refusal._asdict()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
