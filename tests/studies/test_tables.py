"""Tables of a study for papers: whatever a name holds, LaTeX takes it for text."""

import re

from dopd_vl.studies.config import StudyConfig
from dopd_vl.studies.tables import Table, as_latex, as_markdown, tuning_table

NAME = r"a_b & 50% #1 {x} ~^ $y$ \end{tabular} <|z|>"
TABLE = Table(
    ["cell", "held-out", "less vanilla (95 %)"],
    [[NAME, "51.2 ± 1.3", "-1.2 (-3.0 to +0.6)"], ["lr-3", "40.0", ""]],
    [["nano:text_teacher", "80.1", ""]],
    "Rank correlation (Spearman) -0.50, p = 0.10.",
)


def test_latex_has_every_cell_and_nothing_of_a_name_is_a_command() -> None:
    text = as_latex(TABLE)
    assert text.count(r"\begin{tabular}{lrr}") == text.count(r"\end{tabular}") == 1
    rows = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r" \\")]
    assert [len(re.split(r"(?<!\\)&", row)) for row in rows] == [3] * 4
    named = rows[1].split(" & ")[0] if r"\& 50" not in rows[1] else rows[1][: rows[1].index(" & 51.2")]
    known = r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}|\\[&%$#_{}]"
    assert not re.search(r"[\\&%$#_{}~^<>|]", re.sub(known, "", named))
    assert r"51.2 $\pm$ 1.3 & $-$1.2 ($-$3.0 to $+$0.6)" in rows[1]
    assert rows[2].startswith("lr-3 & 40.0")
    assert rows[3].startswith(r"\emph{nano:text\_teacher} & 80.1")
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.rindex(r"\midrule") < text.index(r"\bottomrule")
    assert "(Spearman) $-$0.50" in text


def test_markdown_has_the_same_rows() -> None:
    rows = [line for line in as_markdown(TABLE).splitlines() if line.startswith("|")]
    assert [len(re.split(r"(?<!\\)\|", row)) for row in rows] == [5] * 5
    assert rows[-1] == "| *nano:text_teacher* | 80.1 |  |"


def test_a_cell_that_tried_one_value_alone_has_the_others_empty() -> None:
    rates = (("a", 1e-4, 0.25, False), ("a", 1e-3, None, False), ("b", 1e-2, 0.5, True))
    tried = [
        {"cell": cell, "values": {"training.learning_rate": rate}, "accuracy": accuracy, "chosen": chosen}
        for cell, rate, accuracy, chosen in rates
    ]
    table = tuning_table(StudyConfig(tune_on="tuning"), tried)
    assert table.head == ["cell", "learning_rate=0.0001", "learning_rate=0.001", "learning_rate=0.01"]
    assert table.rows == [["a", "25.0", "not run yet", ""], ["b", "", "", "50.0 *"]]
