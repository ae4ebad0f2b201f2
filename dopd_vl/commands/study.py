"""`dopd-vl study`: a grid of runs with equal budgets, and one table of what they come to."""

from collections.abc import Sequence

from rich.console import Console

from dopd_vl.common.configuration import read_config
from dopd_vl.studies.config import StudyConfig


def main(argv: Sequence[str]) -> int:
    config = read_config(StudyConfig, argv, "dopd-vl study")
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.studies.plots import draw
    from dopd_vl.studies.results import gather
    from dopd_vl.studies.run import run_study
    from dopd_vl.studies.tables import as_markdown, write

    quiet_libraries()
    console = Console()
    failures, scored = run_study(config, console)
    result = gather(config, scored)
    files = [*write(config, result), *draw(config, result)]
    console.print(as_markdown(config, result), highlight=False, markup=False, soft_wrap=True)
    for file in files:
        console.print(str(file), highlight=False, soft_wrap=True)
    for failure in failures:
        told = f"failed: {failure.title}: {failure.reason} ({failure.log})"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    return 1 if failures else 0
