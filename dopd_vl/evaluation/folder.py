"""The folder of an evaluation. It can be killed at any moment: whole batches stay, the rest is done again.

evaluation.json     what is evaluated: settings, and digests of the model and the data; written first
predictions.jsonl   one row a response, as they come
refused.jsonl       examples that could not be shown to the model
scores.json         written last: the evaluation is whole

The first three carry checksums, each row its own: what was damaged is done again, and scores follow from the rows.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from dopd_vl.common.digests import sealed, unsealed
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import append_jsonl, read_json, write_atomically, write_json
from dopd_vl.common.run_layout import REFUSED_FILE
from dopd_vl.evaluation.accuracy import Batch, Prediction, batch_items, count_batches
from dopd_vl.evaluation.sampling import Sampling
from dopd_vl.views import Refusal

IDENTITY_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.jsonl"
SCORES_FILE = "scores.json"
RESULTS = (SCORES_FILE, PREDICTIONS_FILE, REFUSED_FILE)

Row = TypeVar("Row")


class EvaluationFolder:
    """See the module. Whoever opens one holds the folder's lock, for that may empty it.

    Args:
        path: a folder that exists.
        identity: what must not change between the parts of one evaluation.
        overwrite: discard what another evaluation left here.

    Raises:
        UserError: the folder holds another evaluation, or one that cannot be told from another.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], overwrite: bool = False):
        self.path = path
        self.damaged = 0
        """rows that `recover` found no longer to be what was written"""
        self._ordered = True
        identity = json.loads(json.dumps(identity))
        saved = unsealed(read_json(path / IDENTITY_FILE))
        if saved == identity:
            return
        found = [name for name in (IDENTITY_FILE, *RESULTS) if (path / name).exists()]
        if found and not overwrite:
            if saved is None:
                raise UserError(
                    f"output_dir: {path / IDENTITY_FILE} is missing or damaged, so that nothing says whose {found[-1]} "
                    "this is; choose another folder, or evaluate anew with --overwrite true"
                )
            key = next(key for key in sorted({*saved, *identity}) if saved.get(key) != identity.get(key))
            raise UserError(
                f"output_dir: {path} holds another evaluation, whose {key} was {_short(saved.get(key))} and not "
                f"{_short(identity.get(key))}; choose another folder, or give --overwrite true"
            )
        for name in RESULTS:
            (path / name).unlink(missing_ok=True)
        write_json(path / IDENTITY_FILE, sealed(identity))

    def recover(self, count: int, batch_size: int, sampling: Sampling) -> tuple[list[Batch], list[int]]:
        """The batches that are whole, and the numbers of those still to do. Rows of a cut batch are dropped."""
        predictions = {
            (row.index, row.sample): row for row in self._read(PREDICTIONS_FILE, lambda row: Prediction(**row))
        }
        refused = dict(self._read(REFUSED_FILE, lambda row: (row["index"], Refusal(row["id"], row["reason"]))))
        done, left = [], []
        for number in range(count_batches(count, batch_size, sampling)):
            items = batch_items(number, count, batch_size, sampling)
            if all(item in predictions or item[0] in refused for item in items):
                ours = [(index, refused[index]) for index, sample in items if sample == 0 and index in refused]
                done.append(Batch(number, [predictions[item] for item in items if item in predictions], ours))
            else:
                left.append(number)
        if left:
            (self.path / SCORES_FILE).unlink(missing_ok=True)
        self._ordered = not done or not left or done[-1].number < left[0]
        self._write(done)
        return done, left

    def add(self, batch: Batch) -> None:
        """Keep a batch. A kill between the two files leaves it incomplete, and it is done again."""
        append_jsonl(self.path / REFUSED_FILE, map(_refused_row, batch.refused))
        append_jsonl(self.path / PREDICTIONS_FILE, map(_row, batch.predictions))

    def finish(self, batches: Sequence[Batch], scores: Mapping[str, Any]) -> None:
        """The scores of all batches, which are given in their order and are put in it where some were done again."""
        if not self._ordered:
            self._write(batches)
        _put(self.path / SCORES_FILE, json.dumps(scores, indent=2, ensure_ascii=False) + "\n")

    def _write(self, batches: Sequence[Batch]) -> None:
        predictions = (_row(prediction) for batch in batches for prediction in batch.predictions)
        _put(self.path / PREDICTIONS_FILE, _lines(predictions))
        _put(self.path / REFUSED_FILE, _lines(_refused_row(refused) for batch in batches for refused in batch.refused))

    def _read(self, name: str, made_of: Callable[[dict[str, Any]], Row]) -> list[Row]:
        """The rows of a file that are what was written."""
        file, rows = self.path / name, []
        lines = file.read_bytes().split(b"\n") if file.exists() else [b""]
        for line in lines[:-1]:
            try:
                row = unsealed(json.loads(line))
                rows.append(made_of({} if row is None else row))
            except (ValueError, TypeError, KeyError, RecursionError):
                self.damaged += 1
        return rows


def verdicts_of(predictions: Sequence[Prediction]) -> list[list[bool]]:
    """For each question that is scored, whether each of its responses is right."""
    questions: dict[int, list[bool]] = {}
    for prediction in predictions:
        if prediction.correct is not None:
            questions.setdefault(prediction.index, []).append(prediction.correct)
    return list(questions.values())


def _row(prediction: Prediction) -> dict[str, Any]:
    return sealed(asdict(prediction))


def _refused_row(refused: tuple[int, Refusal]) -> dict[str, Any]:
    return sealed({"index": refused[0], **refused[1]._asdict()})


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _put(file: Path, text: str) -> None:
    """Write what is not there already: a finished evaluation is shown again also where nothing can be written."""
    if not file.exists() or file.read_bytes() != text.encode():
        write_atomically(file, text)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
