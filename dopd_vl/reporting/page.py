"""One self-contained HTML page of one or more runs: curves over steps and a token inspector."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files

from dopd_vl.reporting.runs import Run


def report_page(runs: Sequence[Run]) -> str:
    """The page. Everything that a run logged enters it as JSON data, and only as text nodes from there."""
    assets = files("dopd_vl.reporting") / "assets"
    # JSON knows no NaN and no infinity, and a diverged run logs both: the page has gaps there.
    finite = json.loads(json.dumps([asdict(run) for run in runs]), parse_constant=lambda _: None)
    data = script_safe(json.dumps(finite, ensure_ascii=False, allow_nan=False))
    style, script, page = (
        (assets / name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "report.html")
    )
    # Split, not replaced one after another: a run's text may itself hold a placeholder.
    before, rest = page.split("/*STYLE*/")
    middle, rest = rest.split("/*DATA*/")
    between, after = rest.split("/*SCRIPT*/")
    return "".join((before, style, middle, data, between, script, after))


def script_safe(text: str) -> str:
    r"""JSON that no HTML parser can leave a script element from.

    >>> print(script_safe('"</script><!--"'))
    "\u003c/script\u003e\u003c!--"
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
