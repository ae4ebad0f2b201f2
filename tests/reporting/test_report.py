"""The page as it is written: what it holds, what it refuses, and that text of a run stays text."""

import base64
import hashlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dopd_vl.cli import main
from dopd_vl.reporting.inspector import read_rollouts
from tests.reporting.folders import HOSTILE, Elements, parsed, run_folder


def page_of(tmp_path: Path, *arguments: str) -> Elements:
    output = tmp_path / "report.html"
    assert main(["report", *arguments, "--output", str(output)]) == 0
    return parsed(output.read_text(encoding="utf-8"))


def test_hostile_text_stays_data_and_the_page_asks_for_nothing(tmp_path: Path) -> None:
    elements = page_of(tmp_path, str(run_folder(tmp_path / "a")))
    assert elements.tags.count("script") == 2
    assert "img" not in elements.tags
    assert elements.links == []
    (record, *_) = elements.json()["rollouts"][0]["records"]
    assert record["tokens"][0] == HOSTILE
    assert record["alternatives"]["teacher/privileged"][0][0] == [HOSTILE, 0.9]


def test_the_policy_lets_the_pages_own_script_and_style_run_and_nothing_else(tmp_path: Path) -> None:
    elements = page_of(tmp_path, str(run_folder(tmp_path / "a")))
    policy = elements.policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    for text in (elements.script, elements.style):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert "unsafe" not in policy


def test_a_metrics_line_cut_short_is_left_out_and_a_run_without_rollouts_is_reported(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", rollouts=False)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 3, "eval_acc": "é'.encode()[:-1])
    data = page_of(tmp_path, str(folder)).json()
    assert data["runs"][0]["steps"] == 2
    assert data["rollouts"][0]["records"] == []


def test_runs_are_grouped_by_a_key_of_their_configuration(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, objective=objective) for name, objective in (("a", "dopd"), ("b", "opd"))]
    folders.append(run_folder(tmp_path / "c", accuracy=0.2))
    data = page_of(tmp_path, *map(str, folders), "--group", "objective.name").json()
    assert data["groups"] == ["dopd", "opd"]
    charts = {chart["name"]: chart for section in data["sections"] for chart in section["charts"]}
    (dopd, opd) = charts["eval_accuracy"]["lines"]
    assert (dopd["label"], dopd["steps"]) == ("dopd", [1, 2])
    assert dopd["middle"] == pytest.approx([0.15, 0.3])  # of 0.1 and 0.2 at step 1, of 0.2 and 0.4 at step 2
    assert (dopd["low"], dopd["high"]) == ([0.1, 0.2], [0.2, 0.4])
    assert opd["low"] == opd["high"] == opd["middle"]


def test_runs_of_like_names_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for cell in ("dopd", "opd"):
        (tmp_path / cell).mkdir()
    runs = [str(run_folder(tmp_path / cell / "seed-0")) for cell in ("dopd", "opd")]
    assert page_of(tmp_path, *runs).json()["groups"] == ["dopd/seed-0", "opd/seed-0"]
    assert page_of(tmp_path, runs[0]).json()["groups"] == ["seed-0"]


@pytest.mark.parametrize("extra", [[], ["--group", "objective.nme"]])
def test_what_is_no_run_or_no_key_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    folder = run_folder(tmp_path / "a") if extra else tmp_path / "nothing"
    output = tmp_path / "report.html"
    assert main(["report", str(folder), "--output", str(output), *extra]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": None}, "no object with a step"),
        ({"tokens": "abc"}, "tokens must be a list of texts"),
        ({"alternatives": {"teacher/plain": [[]]}}, "alternatives of teacher/plain must be a list for each token"),
        ({"alternatives": {"teacher/plain": [["a"], []]}}, "must be pairs"),
        ({"images": [3]}, "images must be a list of names"),
        ({"boxes": [{"label": "7", "bbox": [1, 2]}]}, "a bbox of four numbers"),
        ({"views": [{"sources": ["student/plain"]}]}, "must have a prompt"),
    ],
)
def test_a_row_that_is_no_rollout_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, message: str
) -> None:
    folder = run_folder(tmp_path / "a")
    first, *_ = (folder / "rollouts.jsonl").read_text().split("\n")
    with (folder / "rollouts.jsonl").open("a") as file:
        file.write(json.dumps({**json.loads(first), **changes}) + "\n")
    assert main(["report", str(folder), "--output", str(tmp_path / "report.html")]) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'rollouts.jsonl'}: line 3" in error
    assert message in error


def test_what_is_no_number_leaves_a_gap_and_not_a_broken_page(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n')
    data = page_of(tmp_path, str(folder)).json()  # refuses NaN
    ((chart,),) = [section["charts"] for section in data["sections"]]
    assert (chart["lines"][0]["steps"], chart["lines"][0]["middle"]) == ([2], [0.5])


def test_siblings_share_the_image_boxes_and_views_that_the_first_of_them_names(tmp_path: Path) -> None:
    rollouts = read_rollouts(run_folder(tmp_path / "a"))
    first, second = rollouts.records
    assert first["images"] == second["images"] == list(rollouts.images)
    assert first["boxes"] == second["boxes"] == [{"label": HOSTILE, "image": 0, "bbox": [100, 100, 500, 500]}]
    assert [rollouts.views[place]["prompt"] for place in first["views"]] == ["add", "add [7, 2]"]
    # The second rollout's teacher saw something else than the first one's.
    assert [rollouts.views[place]["prompt"] for place in second["views"]] == ["add", "add: 9"]


def test_an_image_is_read_from_the_runs_own_folder_and_nowhere_else(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    (name,) = read_rollouts(folder).images
    outside = tmp_path / "a" / "outside.png"
    outside.write_bytes((folder / "images" / name).read_bytes())
    text = (folder / "rollouts.jsonl").read_text()
    (folder / "rollouts.jsonl").write_text(text.replace(name, "../outside.png"))
    assert read_rollouts(folder).images == {}
    (folder / "rollouts.jsonl").write_text(text)
    (folder / "images" / name).write_text("no picture")
    assert read_rollouts(folder).images == {}
    (folder / "images" / name).unlink()
    assert read_rollouts(folder).images == {}


def test_rollouts_of_an_older_run_hold_tokens_alone(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    row = {"step": 1, "id": "e", "tokens": ["a"], "gap": [0.5], "regime": [0], "correct": True, "answer": "9"}
    (folder / "rollouts.jsonl").write_text(json.dumps(row) + "\n")
    (record,) = page_of(tmp_path, str(folder)).json()["rollouts"][0]["records"]
    assert record == row | {"images": [], "boxes": [], "views": []}


def test_rollouts_of_a_few_steps_stand_for_all_and_the_page_knows_how_many_there_are(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    rows = [{"step": step, "id": "e", "tokens": ["a"]} for step in range(1, 10)]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (some,) = page_of(tmp_path, str(folder), "--steps", "3").json()["rollouts"]
    assert [record["step"] for record in some["records"]] == [1, 5, 9]
    assert some["steps"] == 9
    (every,) = page_of(tmp_path, str(folder), "--steps", "0").json()["rollouts"]
    assert len(every["records"]) == 9


def test_a_line_separator_in_model_output_does_not_end_a_row(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    row = {"step": 1, "id": "e", "tokens": ["a\u2028b", "\u0085"]}
    (folder / "rollouts.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (record,) = read_rollouts(folder).records
    assert record["tokens"] == row["tokens"]


def test_figures_are_svg_with_real_text_and_png(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / "a$b$_{"), run_folder(tmp_path / "b", accuracy=0.3)]
    page_of(tmp_path, *map(str, folders), "--figures", str(tmp_path / "figures"))
    svg = (tmp_path / "figures" / "eval_accuracy.svg").read_text()
    assert re.search(r">held-out accuracy<", svg)
    assert re.search(r">a\$b\$_\{<", svg)
    assert Image.open(io.BytesIO((tmp_path / "figures" / "token_share-LH.png").read_bytes())).width > 500


def test_a_figures_legend_stands_below_its_axes_whole_and_shares_are_per_cent(tmp_path: Path) -> None:
    names = [f"dopd-anchored, objective.settings.beta_light={n}, seeds of a long study" for n in range(5)]
    folders = [run_folder(tmp_path / name) for name in names]
    page_of(tmp_path, *map(str, folders), "--figures", str(tmp_path / "figures"))
    svg = (tmp_path / "figures" / "eval_accuracy.svg").read_text()
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    (axes_bottom,) = re.findall(r'<g id="patch_2">\s*<path d="M [\d.]+ ([\d.]+)', svg)
    legend = svg.partition('<g id="legend_1">')[2]
    places = [tuple(map(float, place)) for place in re.findall(r"translate\(([\d.]+) ([\d.]+)\)", legend)]
    places += [tuple(map(float, place)) for place in re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"', legend)]
    assert len(places) >= len(names)
    for x, y in places:
        assert 0 < x < width / 2
        assert float(axes_bottom) < y < height
    words = " ".join(re.findall(r"<text[^>]*>([^<]+)<", legend))
    assert all(name in words for name in names)
    assert re.search(r">2\d(\.\d)?%<", svg)


def test_runs_are_compared_by_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    configs = {
        "a": {"objective": {"name": "dopd", "settings": {}}, "training": {"learning_rate": 1e-3}},
        "b": {"objective": {"name": "dopd", "settings": {"beta_light": 0.3}}, "training": {"learning_rate": 1e-3}},
        "c": {"objective": {"name": HOSTILE, "settings": {}}, "training": {"learning_rate": 2e-3, "bf16": True}},
    }
    for name, config in configs.items():
        folder = run_folder(tmp_path / name, rollouts=False)
        (folder / "config.yaml").write_text(yaml.safe_dump({"output_dir": name, "seed": 0, **config}))
    elements = page_of(tmp_path, *(str(tmp_path / name) for name in configs))
    assert elements.json()["differences"] == [
        ["objective.name", ["dopd", "dopd", HOSTILE]],
        ["training.learning_rate", ["0.001", "0.001", "0.002"]],
        ["objective.settings.beta_light", [None, "0.3", None]],
        ["training.bf16", [None, None, "true"]],
    ]
    assert "img" not in elements.tags
    assert page_of(tmp_path, str(tmp_path / "a")).json()["differences"] == []


def test_what_cannot_be_written_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run_folder(tmp_path / "a"))
    (tmp_path / "file").touch()
    assert main(["report", folder, "--output", str(tmp_path / "file" / "report.html")]) == 2
    assert "--output: cannot write" in capsys.readouterr().err
    output = ["--output", str(tmp_path / "report.html")]
    assert main(["report", folder, *output, "--figures", str(tmp_path / "file")]) == 2
    assert "--figures: " in capsys.readouterr().err


def test_the_commands_of_the_documentation_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```bash\n(.*?)```", page, re.S) for line in block.strip().splitlines()]
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    for command in commands:
        _, *words = shlex.split(command)
        for folder in (Path(word) for word in words if word.startswith("runs/")):
            folder.parent.mkdir(parents=True, exist_ok=True)
            run_folder(folder)
        assert main(words) == 0
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "figures" / "eval_accuracy.svg").is_file()


def test_whose_a_token_is_stands_apart_from_its_kind(tmp_path: Path) -> None:
    """Kinds of token add up to one, and so do teachers: never both in one section."""
    folder = run_folder(tmp_path / "a")
    row = {"step": 1, "token_share/LH": 0.4, "token_share/HT": 0.6, "loss_share/HT": 1.0, "teacher_wait_seconds": 1.5}
    for quantity in ("token_share", "loss_share", "rollout_accuracy", "logp"):
        row |= {f"{quantity}/teacher:{name}": 0.5 for name in ("default", "math")}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    elements = page_of(tmp_path, str(folder), "--figures", str(tmp_path / "figures"))
    sections = {section["title"]: section["charts"] for section in elements.json()["sections"]}
    assert [chart["title"] for chart in sections["Share of tokens"]] == ["share of tokens, HT", "share of tokens, LH"]
    assert [chart["name"] for chart in sections["Share of loss"]] == ["loss_share/HT"]
    assert "Everything else" not in sections
    by_teacher = {chart["title"]: chart["share"] for chart in sections["By teacher"]}
    assert len(by_teacher) == 9
    assert by_teacher["share of tokens, teacher math"]
    assert by_teacher["accuracy of the rollouts, teacher math"]
    assert not by_teacher["log-probability of a response's token (nats), teacher default"]
    assert not by_teacher["waited for served teachers (s a step)"]
    assert (tmp_path / "figures" / "token_share-teacher-math.svg").is_file()
