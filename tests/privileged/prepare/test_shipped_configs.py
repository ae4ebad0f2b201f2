"""Every shipped config of `prepare`, by the real command, on a small set in the schema and place that it expects."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from answering import Answering
from datasets import Dataset
from privileged_samples import noise

from dopd_vl.cli import main
from privileged.dataset import load_privileged

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "prepare"
COUNT = 12


def parquet(path, rows):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)


def jsonl(path, rows):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def pictures(folder, names):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        noise(seed=number).save(Path(folder) / name)


def problem(number):
    return f"Sum up the first {number + 20} odd numbers and name the result as a word."


def write_dapo():
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": f"Solve. {problem(number % 6)}"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "nothing", "style": "rule"},
            "extra_info": {"index": str(number)},
        }
        for number in range(COUNT)
    ]
    parquet("runs/downloads/DAPO-Math-17k/data/dapo-math-17k.parquet", rows)


def write_dapo_processed():
    rows = [{"prompt": problem(number), "solution": "nothing", "data_source": "m"} for number in range(COUNT)]
    parquet("runs/downloads/DAPO-Math-17k-Processed/all/train-00000-of-00001.parquet", rows)


def write_rar():
    rows = [
        {"question": problem(number), "reference_answer": "Light, in short.", "question_source": "s", "rubric_count": 1}
        for number in range(COUNT)
    ]
    parquet("runs/downloads/RaR-Science/data/train-00000-of-00001.parquet", rows)


def write_skywork():
    tests = json.dumps({"inputs": ["1 2\n"], "outputs": ["three\n"]})
    rows = [
        {
            "data_source": "train-code-taco",
            "prompt": [{"role": "user", "content": problem(number)}],
            "reward_model": {"ground_truth": tests, "style": "rule"},
            "extra_info": {"index": number},
        }
        for number in range(COUNT)
    ]
    parquet("runs/downloads/Skywork-OR1-RL-Data/data/code-00000-of-00001.parquet", rows)


def write_virl39k():
    names = [f"Processed-{number}.png" for number in range(COUNT)]
    pictures("runs/downloads/ViRL39K/images", names)
    rows = [
        {
            "qid": f"MMK12-{number}",
            "question": f"<image>{problem(number)}",
            "answer": "\\boxed{\\frac{1}{2}}",
            "image": [f"images/{name}"],
            "source": "MMK12",
            "category": "c",
            "PassRate_32BTrained": 0.5,
            "PassRate_7BBase": -1.0,
        }
        for number, name in enumerate(names)
    ]
    parquet("runs/downloads/ViRL39K/39Krelease.parquet", rows)


def write_annotated():
    jsonl("my-data/records.jsonl", [{"question": problem(number), "solution": "nothing"} for number in range(COUNT)])


def write_jsonl():
    pictures("my-data/images", [f"{number}.png" for number in range(COUNT)])
    rows = [
        {
            "question": f"<image>{problem(number)}",
            "solution": "nothing",
            "images": [f"{number}.png"],
            "steps": ["Look at the terms."],
            "objects": [{"label": "dot", "bbox": [1, 2, 20, 30]}],
        }
        for number in range(COUNT)
    ]
    jsonl("my-data/records.jsonl", rows)


def write_dataset():
    rows = [{"question": problem(number), "answer": "nothing", "image": None} for number in range(COUNT)]
    parquet("my-data/parquet/train-00000-of-00001.parquet", rows)


def write_coco():
    pictures("coco/val2017", [f"{number}.png" for number in range(COUNT)])
    width, height = noise().size
    content = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height} for number in range(COUNT)
        ],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 5, "bbox": [1, 2, 10, 20], "iscrowd": 0}
            for number in range(COUNT)
        ],
    }
    Path("coco/annotations").mkdir()
    Path("coco/annotations/instances_val2017.json").write_text(json.dumps(content))


def write_aerial():
    pictures("runs/real/aerial/images", [f"{number}.png" for number in range(COUNT)])
    folder = Path("runs/real/aerial/annotations")
    folder.mkdir(parents=True)
    width, height = noise().size
    for number in range(COUNT):
        (folder / f"{number}.xml").write_text(
            f"<annotation><filename>{number}.png</filename><size><width>{width}</width><height>{height}</height>"
            "<depth>3</depth></size><object><name>Tree</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax>"
            "<ymax>30</ymax></bndbox></object></annotation>"
        )


def write_stamps():
    pictures("runs/real/stamps/images", [f"{number}.png" for number in range(COUNT)])
    folder = Path("runs/real/stamps/labels")
    folder.mkdir(parents=True)
    for number in range(COUNT):
        (folder / f"{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (folder.parent / "data.yaml").write_text(yaml.safe_dump({"names": ["peahen"]}))


def write_bigbench():
    rows = [
        {
            "id": f"b{number}",
            "prompt": problem(number),
            "answer": "nothing",
            "task": "exact",
            "privileged.hints": ["Add."],
        }
        for number in range(COUNT)
    ]
    jsonl("runs/real/bigbench/records.jsonl", rows)


def write_ocr():
    pictures("runs/real/ocr/images", [f"{number}.png" for number in range(COUNT)])
    rows = [
        {"prompt": problem(number), "answer": "nothing", "task": "exact", "images": [f"{number}.png"], "privileged": {}}
        for number in range(COUNT)
    ]
    jsonl("runs/real/ocr/records.jsonl", rows)


SETS = {
    "aerial": (write_aerial, COUNT),
    "annotated-jsonl": (write_annotated, COUNT),
    "bigbench": (write_bigbench, COUNT),
    "coco": (write_coco, 2 * COUNT),
    "dapo-math-17k": (write_dapo, 6),
    "dapo-math-17k-processed": (write_dapo_processed, COUNT),
    "dataset": (write_dataset, COUNT),
    "jsonl": (write_jsonl, COUNT),
    "nano-text": (lambda: None, 10),
    "nano-vision": (lambda: None, 10),
    "ocr": (write_ocr, COUNT),
    "rar-science": (write_rar, COUNT),
    "skywork-or1-code": (write_skywork, COUNT),
    "stamps": (write_stamps, 2 * COUNT),
    "virl39k": (write_virl39k, COUNT),
}
"""What writes the small set, and how many records it makes."""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder with the shipped configs, where their relative paths lead to small sets."""
    shutil.copytree(CONFIGS, tmp_path / "configs" / "prepare")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_shipped_config_prepares_a_small_set_of_its_schema(path, elsewhere, capsys):
    write, records = SETS[path.stem]
    write()
    settings = yaml.safe_load(path.read_text())
    options = ["--workers", "0"]
    if path.stem.startswith("nano"):
        options += ["--source.options.size", str(records)]
    server = Answering()
    with server.serving() as url:
        if "annotate" in settings:
            options += ["--annotate.url", url, "--annotate.concurrency", "8"]
        code = main(["prepare", "--config", f"configs/prepare/{path.name}", *options])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert f"{records} records" in said.out
    rows = load_privileged(settings["output"], cache_dir=str(elsewhere / "hf"))
    assert len(rows) == records
    for part in settings.get("annotate", {}).get("parts", []):
        assert all(row[part] for row in rows["privileged"]), part


def test_virl39k_goes_from_download_to_boxes_by_the_commands_of_the_page(elsewhere, capsys):
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.partition("### A real set, step by step")[2].partition("\n### ")[0]
    commands = [line.split() for line in section.splitlines() if line.strip().startswith("dopd-vl prepare")]
    assert len(commands) == 4
    model = yaml.safe_load((CONFIGS / "virl39k.yaml").read_text())["annotate"]["model"]
    assert f"vllm serve {model} " in section
    write_virl39k()
    server, asked = Answering(), []
    with server.serving() as url:
        for command in commands:
            there = [] if "null" in command else ["--annotate.url", url]
            assert main([*command[1:], "--workers", "0", *there]) == 0, capsys.readouterr().err
            asked.append(len(server.bodies))
    parts, rounds = 3, 2
    assert asked == [0, 0, COUNT * parts * rounds, COUNT * parts * rounds], "the trial's replies serve the whole run"
    assert "12 records: about 72 requests" in capsys.readouterr().out
    first = load_privileged("runs/data/virl39k", cache_dir=str(elsewhere / "hf"))[0]
    assert first["privileged"]["boxes"][0]["bbox"] == pytest.approx([4.8, 6.4, 24.0, 19.2])


MISTAKES = {
    "a wrong column": (
        ["--source.options.columns.prompt", "qestion"],
        "source.options.columns.prompt: the data has no column 'qestion'; did you mean 'question'?",
    ),
    "a missing file": (["--source.options.path", "nowhere.jsonl"], "source.options.path: no file 'nowhere.jsonl'"),
    "no key": (["--annotate.key_env", "NO_SUCH_KEY_HERE"], "the environment variable NO_SUCH_KEY_HERE is not set"),
    "a wrong address": (["--annotate.url", "localhost:8000/v1"], "annotate.url: 'localhost:8000/v1' is no http"),
    "an address without v1": (["--annotate.url", "{server}"], "no such model or address"),
    "a server that is not there": (
        ["--annotate.url", "http://127.0.0.1:9/v1", "--annotate.retries", "0"],
        "annotate.url: the connection to http://127.0.0.1:9/v1 failed",
    ),
    "an output under a file": (["--output", "my-data/records.jsonl/out"], "output: the folder"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_users_likely_mistakes_are_told_in_one_line(options, message, elsewhere, capsys):
    write_annotated()
    with Answering(lambda *args: 404).serving() as url:
        options = [option.format(server=url.removesuffix("/v1")) for option in options]
        code = main(["prepare", "--config", "configs/prepare/annotated-jsonl.yaml", *options])
    said = capsys.readouterr().err
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert message in line
    assert said.rstrip().endswith(line)
