"""`dopd-vl report`: one or more runs as a page to read."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dopd_vl.errors import UserError


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dopd-vl report", description="Runs as one self-contained HTML file.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the file to write")
    parser.add_argument("--group", metavar="KEY", help="draw runs of one value of this key as a mean with its range")
    arguments = parser.parse_args(argv)
    from dopd_vl.reporting.page import report_page
    from dopd_vl.reporting.runs import read_runs
    from privileged.journal import write_atomically

    page = report_page(read_runs(arguments.runs, arguments.group))
    try:
        write_atomically(arguments.output, page)
    except OSError as error:
        raise UserError(f"--output: cannot write {arguments.output} ({error.strerror})") from error
    print(f"report: {arguments.output}")
    return 0
