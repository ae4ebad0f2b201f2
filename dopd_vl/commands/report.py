"""`dopd-vl report`: one or more runs as a page to read, and their curves as figures for a paper."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dopd_vl.common.visible import print_line

STEPS = 20


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    from dopd_vl.common.files import make_folder, write_atomically, writing_to
    from dopd_vl.reporting.figures import draw_figure
    from dopd_vl.reporting.inspector import read_rollouts
    from dopd_vl.reporting.page import report_page
    from dopd_vl.reporting.quantities import file_stem, is_share, sections, title_of
    from dopd_vl.reporting.runs import curve, read_runs

    runs = read_runs(arguments.runs, arguments.group)
    rollouts = [read_rollouts(run.folder, arguments.steps or None) for run in runs]
    for run, some in zip(runs, rollouts, strict=True):
        if some.missing:
            files = ", ".join(some.missing)
            print_line(f"{run.folder}: gone or damaged, and not on the page: {files}", error=True)
    page = report_page(runs, rollouts)
    with writing_to(arguments.output, "--output"):
        write_atomically(arguments.output, page)
    print_line(f"report: {arguments.output}")
    if arguments.figures is not None:
        make_folder(arguments.figures, "--figures")
        with writing_to(arguments.figures, "--figures"):
            for section in sections(name for run in runs for row in run.metrics for name in row):
                for name in section.names:
                    if lines := curve(runs, name):
                        stem = arguments.figures / file_stem(name)
                        draw_figure(lines, title_of(name), stem, is_share(name))
        print_line(f"figures: {arguments.figures}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dopd-vl report", description="Show runs as one self-contained HTML file. See docs/report.md."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="The folder of a run.")
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="The HTML file to write.")
    parser.add_argument(
        "--group",
        metavar="KEY",
        help="Runs with one value of this key are drawn as a mean with its range.",
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="Each curve is also written here, as SVG and PNG.")
    parser.add_argument(
        "--steps",
        type=_not_negative,
        default=STEPS,
        metavar="N",
        help=f"Rollouts of at most N steps of each run are shown, evenly spread; 0 shows all. By default N is {STEPS}.",
    )
    return parser


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number
