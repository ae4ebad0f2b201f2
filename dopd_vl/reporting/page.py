"""One self-contained HTML page of one or more runs: curves over steps and a token inspector."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from dopd_vl.common.files import is_number
from dopd_vl.reporting.figures import PALETTE
from dopd_vl.reporting.inspector import Rollouts
from dopd_vl.reporting.quantities import is_share, sections, title_of
from dopd_vl.reporting.runs import Run, curve, differences

SCRIPTS = ("page.js", "charts.js", "tokens.js", "inspector.js")


def report_page(runs: Sequence[Run], rollouts: Sequence[Rollouts]) -> str:
    """The page; `rollouts[i]` are those of `runs[i]`.

    Everything that a run logged enters it as JSON data, and only as text nodes from there. The page's own policy lets
    nothing else run, and nothing be loaded.
    """
    assets = files("dopd_vl.reporting") / "assets"
    style = (assets / "report.css").read_text(encoding="utf-8")
    script = '"use strict";\n' + "".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = (assets / "report.html").read_text(encoding="utf-8")
    parts = {"POLICY": policy, "STYLE": style, "DATA": script_safe(_data(runs, rollouts)), "SCRIPT": script}
    # Split, not replaced one after another: a run's text may itself hold a placeholder.
    done = []
    for name, text in parts.items():
        before, page = page.split(f"/*{name}*/")
        done += [before, text]
    return "".join([*done, page])


def script_safe(text: str) -> str:
    r"""JSON that no HTML parser can leave a script element from.

    >>> print(script_safe('"</script><!--"'))
    "\u003c/script\u003e\u003c!--"
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(runs: Sequence[Run], rollouts: Sequence[Rollouts]) -> str:
    images = {name: data for of_run in rollouts for name, data in of_run.images.items()}
    data = {
        "palette": PALETTE,
        "groups": list(dict.fromkeys(run.group for run in runs)),
        "runs": [_facts(run) for run in runs],
        "differences": list(differences(runs).items()),
        "sections": _curves(runs),
        "rollouts": [
            {"run": run.name, "steps": some.steps, "views": some.views, "records": some.records}
            for run, some in zip(runs, rollouts, strict=True)
        ],
        "images": {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in images.items()},
    }
    # JSON knows no NaN and no infinity, and a diverged run keeps both with its tokens: the page has gaps there.
    finite = json.loads(json.dumps(data), parse_constant=lambda _: None)
    return json.dumps(finite, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _facts(run: Run) -> dict[str, Any]:
    """A line of the table of runs; None for what the run did not log."""
    accuracies = [row["eval_accuracy"] for row in run.metrics if is_number(row.get("eval_accuracy"))]
    entropies = [row["eval_entropy"] for row in run.metrics if is_number(row.get("eval_entropy"))]
    return {
        "name": run.name,
        "group": run.group,
        "objective": run.objective,
        "seed": run.seed,
        "steps": max((row["step"] for row in run.metrics), default=None),
        "first": accuracies[0] if accuracies else None,
        "last": accuracies[-1] if accuracies else None,
        "best": max(accuracies, default=None),
        "entropy": entropies[-1] if entropies else None,
    }


def _curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    found = []
    for section in sections(name for run in runs for row in run.metrics for name in row):
        charts = []
        for name in section.names:
            lines = curve(runs, name)
            if lines:
                chart = {"name": name, "title": title_of(name), "share": is_share(name)}
                charts.append({**chart, "lines": [asdict(line) for line in lines]})
        if charts:
            found.append({"title": section.title, "charts": charts})
    return found
