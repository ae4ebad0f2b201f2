"""`dopd-vl study`: a grid of runs with equal budgets, and one table of what they come to."""

from collections.abc import Sequence

from dopd_vl.common.configuration import read_config
from dopd_vl.common.terminal import Terminal, show_table, tell
from dopd_vl.studies.config import StudyConfig


def main(argv: Sequence[str]) -> int:
    config = read_config(StudyConfig, argv, "dopd-vl study")
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.studies.plots import draw
    from dopd_vl.studies.results import gather
    from dopd_vl.studies.run import run_study
    from dopd_vl.studies.tables import as_markdown, tables_of, write

    quiet_libraries()
    console = Terminal()
    outcome = run_study(config, console)
    result = gather(config, outcome)
    files = [*write(config, result), *draw(config, result)]
    for table in tables_of(config, result):
        if not console.is_terminal:
            tell(console, as_markdown(table))
            continue
        show_table(console, table.head, table.rows, sums=table.references)
        if table.note:
            tell(console, table.note)
    for file in files:
        tell(console, str(file))
    for failure in outcome.failures:
        told = f"failed: {failure.title}: {failure.reason} ({failure.log})"
        tell(console, told)
    return 1 if outcome.failures else 0
