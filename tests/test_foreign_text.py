"""Text of others, wherever it comes from, moves nothing on a terminal and ends no command."""

import ast
import io
import json
import sys
import unicodedata

import pytest
import yaml
from PIL import Image
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from dopd_vl.common.progress import Progress
from dopd_vl.common.terminal import Terminal, show, tell
from dopd_vl.common.visible import visible
from privileged import load_privileged
from tests.commands import ROOT, dopd_vl

HOSTILE = "x\x1b]0;owned\x07\x1b[2J\x9b31m[/red][bold]\u202egnp.\u200b\u2066\U000e0041 :smile:"
QWEN3_TOKENS = [
    *(f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", "repo_name", "file_sep")),
    *(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad", "vision") for end in ("start", "end")),
    *(f"<|{name}_pad|>" for name in ("vision", "image", "video", "fim")),
    *(f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix")),
    *(f"<{slash}{name}>" for name in ("tool_call", "tool_response", "think") for slash in ("", "/")),
]
"""The added tokens of Qwen3's and Qwen3-VL's tokenizers, 151643 to 151668."""


def harmless(text):
    """Nothing but what is seen, and the sequences with which rich itself colours and draws."""
    return all(sign.isprintable() or sign in "\n\t" or unicodedata.category(sign) == "Zs" for sign in text)


def test_what_is_no_text_is_written_out_and_all_else_stays():
    assert visible("naïve 漢字\u3000é\n\t🙂") == "naïve 漢字\u3000é\n\t🙂"
    assert all(harmless(visible(chr(code))) for code in range(sys.maxunicode + 1))
    assert visible("\ud800 \r\x7f") == r"\ud800 \r\x7f"


def test_nothing_in_the_packages_prints_past_the_one_place():
    allowed = {"dopd_vl/common/terminal.py", "dopd_vl/common/visible.py"}
    found = []
    for file in sorted([*(ROOT / "dopd_vl").rglob("*.py"), *(ROOT / "privileged").rglob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called.split(".")[-1] in ("print", "Console") or called in ("sys.stdout.write", "sys.stderr.write"):
                found.append((str(file.relative_to(ROOT)), node.lineno, called))
    assert [one for one in found if one[0] not in allowed] == []
    assert {one[0] for one in found} == allowed


@pytest.mark.parametrize("kind", [Terminal, Console])
def test_lines_and_bars_take_text_for_text_on_any_console(kind):
    stream = io.StringIO()
    console = kind(file=stream, width=400)
    tell(console, HOSTILE, style="yellow")
    with Progress(console, HOSTILE, 3, "records") as progress:
        progress.reach(1, HOSTILE, say=True)
    assert harmless(stream.getvalue())
    assert stream.getvalue().count("[/red][bold]") == 4, "the line, where the work begins, and its title and facts"


def test_tables_titles_and_markdown_do_so_on_a_terminal():
    stream = io.StringIO()
    console = Terminal(file=stream, width=400, force_terminal=True, color_system=None)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    for shown in (table, Markdown(HOSTILE)):
        show(console, shown)
    assert harmless(stream.getvalue())
    assert stream.getvalue().count("[/red][bold]") == 4


def write_config(folder, source, **settings):
    settings |= {"source": source, "output": "out", "max_rejected_share": 1.0}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return "--config", "config.yaml"


def everything_said(folder, done):
    """What was printed, and the files that people read."""
    names = ("rejected.jsonl", "audit.json", "README.md")
    return done.stdout + done.stderr + "".join((folder / "out" / name).read_text() for name in names)


def test_hostile_records_and_files_are_reported_as_what_they_are(tmp_path):
    good = {"answer": "this", "task": "exact"}
    odd = [
        {**good, "id": HOSTILE},
        {**good, "id": "half \ud83d"},
        {**good, "id": "no image", "images": [f"{HOSTILE}.png"]},
        {**good, "id": "task", "task": HOSTILE},
        {**good, "id": "column", "privileged": {HOSTILE: 1}},
        {**good, "id": "surrogate", "prompt": "\udcff", "source": "\udcff"},
        {**good, "id": "source", "source": f"{HOSTILE}|<img src=x>"},
    ]
    rows = [{"prompt": f"Which of {number}?"} | row for number, row in enumerate([*odd, good])]
    (tmp_path / "set[v1].jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, HOSTILE]))
    source = {"kind": "jsonl", "options": {"path": "set[v1].jsonl"}, "default_task": "exact"}
    done = dopd_vl("prepare", *write_config(tmp_path, source), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert harmless(everything_said(tmp_path, done))
    assert "<img" not in (tmp_path / "out" / "README.md").read_text()
    assert "2 records prepared" in done.stderr


def test_hostile_names_of_files_and_columns_are_reported_as_what_they_are(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "good.png")
    (tmp_path / "labels" / "good.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    stem = HOSTILE.replace("/", "_").encode() + b"\xff"
    (tmp_path / "images" / "also.png").write_bytes((tmp_path / "images" / "good.png").read_bytes())
    (tmp_path / "labels" / "also.txt").write_text(f"{HOSTILE} 0.5\n")
    with open(bytes(tmp_path / "labels") + b"/" + stem + b".txt", "w") as file:
        file.write("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    options = {"images": "images", "labels": "labels", "names": "data.yaml"}
    options["questions"] = [{"question": "How many {label}s?", "answer": "{count}"}]
    done = dopd_vl("prepare", *write_config(tmp_path, {"kind": "yolo", "options": options}), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert harmless(everything_said(tmp_path, done))


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate", "study", "plan", "report", HOSTILE])
def test_hostile_arguments_come_back_as_what_they_are(command, tmp_path):
    for words in ([f"--{HOSTILE}", "1"], ["--config", HOSTILE], [HOSTILE]):
        done = dopd_vl(command, *words, cwd=tmp_path)
        assert done.returncode == 2
        assert harmless(done.stdout + done.stderr)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("token", QWEN3_TOKENS)
def test_every_control_token_is_refused_wherever_it_stands(token):
    from dopd_vl.common.errors import RecordError
    from privileged.records.records import parse_record

    for where in (
        {"prompt": f"a {token}?"},
        {"answer": token},
        {"privileged": {"hints": [f"b{token}"]}},
        {"id": token},
    ):
        with pytest.raises(RecordError, match="control token"):
            parse_record({"prompt": "q?", "answer": "a", "task": "exact", **where})


def test_solutions_that_think_are_had_by_a_transform(tmp_path):
    row = {"prompt": "Which?", "answer": "<think>Hm.</think>\nthis", "task": "exact"}
    (tmp_path / "set.jsonl").write_text(json.dumps(row) + "\n")
    card = {"title": "t", "homepage": "h", "licence": "l", "found_in": "f", "schema_checked": "s", "kind": "jsonl"}
    card["transforms"] = [{"column": "answer", "do": "after_thinking"}]
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    source = {"kind": "jsonl", "options": {"path": "set.jsonl"}}
    refused = dopd_vl("prepare", *write_config(tmp_path, source), cwd=tmp_path)
    assert refused.returncode == 2
    assert "after_thinking" in (tmp_path / "out" / "rejected.jsonl").read_text()
    source = {"card": "card.yaml", "options": {"path": "set.jsonl"}}
    done = dopd_vl("prepare", *write_config(tmp_path, source, overwrite=True), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(tmp_path):
    for name, answer in (("setv", "another"), ("set[v1]", "this")):
        (tmp_path / "set.jsonl").write_text(json.dumps({"prompt": "Which?", "answer": answer, "task": "exact"}) + "\n")
        config = write_config(tmp_path, {"kind": "jsonl", "options": {"path": "set.jsonl"}})
        assert dopd_vl("prepare", *config, "--output", name, cwd=tmp_path).returncode == 0
    assert load_privileged(tmp_path / "set[v1]", cache_dir=str(tmp_path / "hf"))["answer"] == ["this"]
