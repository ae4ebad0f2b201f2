"""Source cards: each that ships reads a small file in its own set's schema; a wrong card or config names its key."""

import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from privileged_samples import noise
from rich.console import Console

from dopd_vl.common.errors import ConfigurationError, RecordError
from dopd_vl.common.resources import shipped
from privileged import load_privileged
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.prepare.prepare import prepare
from privileged.records.records import parse_record
from privileged.sources.cards import find_card, read_card, resolve_source
from privileged.sources.sources import SOURCES, hub_source
from privileged.sources.transforms import (
    TRANSFORMS,
    after_thinking,
    item,
    join_folder,
    key,
    objects,
    parse_json,
    rename,
    unbox,
    yes_no,
)

CARDS = sorted(shipped("data/sources").glob("*.yaml"))
DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'
BOX_IT = "\n\nReason step by step, and put the final answer within \\boxed{}."


def quiet() -> Console:
    return Console(quiet=True)


def read(card: str, **options) -> list:
    """Every record of a card's set, parsed as a preparation parses it."""
    settings, factory = resolve_source(SourceConfig(card=card, options=options), SOURCES)
    source = factory(settings.options)
    return [
        parse_record(
            source[number],
            source=settings.name,
            image_root=source.image_root,
            default_task=settings.default_task,
            box_format=settings.box_format,
        )
        for number in range(len(source))
    ]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_shipped_cards_parse_and_say_where_they_come_from(path: Path) -> None:
    card = read_card(path)
    assert card.kind in SOURCES
    for text in (card.title, card.homepage, card.licence, card.found_in, card.schema_checked):
        assert text.strip()
    assert card.revision is None or len(card.revision) == 40


def test_every_named_set_has_its_card() -> None:
    wanted = {"rar-science", "dapo-math-17k", "dapo-math-17k-processed", "skywork-or1-code", "virl39k"}
    forms = {"jsonl", "hugging-face", "hugging-face-detection", "coco", "yolo", "pascal-voc"}
    forms |= {"llava", "sharegpt", "messages"}
    assert wanted | forms == {path.stem for path in CARDS}


def test_dapo_loses_its_instruction_and_its_repeats(tmp_path: Path) -> None:
    def row(problem: str, answer: str, number: int) -> dict:
        return {
            "data_source": "math_dapo",
            "prompt": [{"content": DAPO_BEFORE + problem + DAPO_AFTER, "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": f"uuid-{number}"},
        }

    rows = [row("What is $1+1$?", "2", 0), row("What is $2+3$?", "5", 1)] * 10
    (tmp_path / "raw").mkdir()
    Dataset.from_list(rows).to_parquet(str(tmp_path / "raw" / "dapo-math-17k.parquet"))
    source = SourceConfig(card="dapo-math-17k", options={"path": str(tmp_path / "raw")})
    result = prepare(PrepareConfig(source, str(tmp_path / "out"), max_rejected_share=0.95), console=quiet())
    assert (result.records, result.rejected) == (2, 18)
    data = load_privileged(result.output)
    assert [message["content"] for message in data[0]["prompt"]] == ["What is $1+1$?" + BOX_IT]
    assert (data[0]["answer"], data[0]["task"], data[0]["source"]) == ("2", "math", "dapo-math-17k")


def test_the_deduplicated_dapo_is_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    Dataset.from_list([{"prompt": "What is $1+1$?", "solution": "2", "data_source": "math_dapo"}]).to_parquet(str(path))
    (record,) = read("dapo-math-17k-processed", path=str(path))
    assert (record.prompt[0]["content"], record.answer) == ("What is $1+1$?" + BOX_IT, "2")


def test_rar_science_is_free_text_that_nothing_scores(tmp_path: Path) -> None:
    rubric = [{"title": "Units", "description": "Gives the unit.", "weight": 5}]
    row = {
        "question": "How fast does light travel?",
        "reference_answer": "About $3 \\times 10^8$ m/s in vacuum.",
        "question_source": "textbook",
        "rubric": rubric,
        "rubric_list": ["Gives the unit."],
        "rubric_count": 1,
    }
    Dataset.from_list([row]).to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    (record,) = read("rar-science", path=str(tmp_path))
    assert (record.task, record.source, record.answer) == ("open", "textbook", row["reference_answer"])


def test_skywork_code_keeps_its_tests_and_refuses_what_are_none(tmp_path: Path) -> None:
    forms = [
        {"inputs": ["1 2\n"], "outputs": ["3\n"]},
        {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]},
        {"entry_point": "Solution().add", "import_prefix": "", "test_code": "def check(candidate):\n    assert 1"},
        {"assert_case": ["assert add(1, 2) == 3"]},
    ]
    rows = [
        {
            "data_source": "train-code-taco-easy",
            "prompt": [{"role": "user", "content": f"Add two numbers, form {number}."}],
            "reward_model": {"ground_truth": json.dumps(form), "style": "rule"},
            "extra_info": {"index": number},
        }
        for number, form in enumerate(forms)
    ]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "code-00000-of-00001.parquet"))
    records = read("skywork-or1-code", path=str(tmp_path))
    assert [json.loads(record.answer) for record in records] == forms
    # Tests are no answer to show to a teacher.
    assert {(record.task, record.privileged["final_answer"]) for record in records} == {("code", None)}
    rows[0]["reward_model"]["ground_truth"] = '{"inputs": [], "outputs": []}'
    Dataset.from_list(rows[:1]).to_parquet(str(tmp_path / "code-00000-of-00001.parquet"))
    with pytest.raises(RecordError, match="the tests need inputs and outputs"):
        read("skywork-or1-code", path=str(tmp_path))


def test_virl39k_pictures_come_from_the_unpacked_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(2):
        noise(seed=number).save(tmp_path / "images" / f"Processed-{number}.png")
    rates = {"PassRate_32BTrained": 0.5, "PassRate_7BBase": -1.0, "category": "Spatial Reasoning"}
    rows = [
        {
            "qid": "MMK12-1",
            "question": "<image><image>Which is larger?",
            "answer": "\\boxed{\\frac{1}{2}}",
            "image": ["images/Processed-0.png", "images/Processed-1.png"],
            "source": "MMK12",
            **rates,
        },
        {
            "qid": "D-2",
            "question": "What is 1+1?",
            "answer": "\\boxed{2}",
            "image": [],
            "source": "DeepScaleR",
            **rates,
        },
    ]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "39Krelease.parquet"))
    pictured, plain = read("virl39k", path=str(tmp_path / "39Krelease.parquet"), images=str(tmp_path))
    assert (pictured.id, pictured.answer, pictured.source) == ("MMK12-1", "\\frac{1}{2}", "MMK12")
    assert [stored.size for stored in pictured.images] == [noise().size] * 2
    assert (plain.images, plain.answer, plain.task) == ([], "2", "math")


def test_generic_cards_read_jsonl_and_saved_datasets(tmp_path: Path) -> None:
    row = {"prompt": "2+2?", "answer": "4", "task": "number"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    Dataset.from_list([row]).save_to_disk(str(tmp_path / "saved"))
    for card, path in (("jsonl", "a.jsonl"), ("hugging-face", "saved")):
        (record,) = read(card, path=str(tmp_path / path))
        assert (record.answer, record.source) == ("4", card)


def test_the_coco_card_asks_for_the_count_of_each_category(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    noise(seed=1).save(tmp_path / "images" / "1.png")
    width, height = noise(seed=1).size
    boxes = [[1, 2, 10, 20], [20, 2, 10, 20]]
    annotations = [
        {"id": number, "image_id": 1, "category_id": 5, "bbox": box, "iscrowd": 0} for number, box in enumerate(boxes)
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": width, "height": height}],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": annotations,
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (record,) = read("coco", annotations=str(tmp_path / "instances.json"), images=str(tmp_path / "images"))
    assert "kind 'cat'" in record.prompt[0]["content"]
    assert (record.answer, record.task) == ("2", "number")
    assert [box["bbox"] for box in record.privileged["boxes"]] == [[1, 2, 11, 22], [20, 2, 30, 22]]
    assert len(record.privileged["hints"]) == 3


def test_another_kind_reads_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "dump.jsonl").write_text(json.dumps({"prompt": "1+1?", "solution": "2"}) + "\n")
    config = SourceConfig("jsonl", {"path": str(tmp_path / "dump.jsonl")}, card="dapo-math-17k-processed")
    settings, factory = resolve_source(config, SOURCES)
    assert factory(settings.options)[0]["answer"] == "2"


def test_the_hub_is_asked_for_the_pinned_revision_and_only_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(dataset_id, name=None, revision=None):
        asked.append((dataset_id, name, revision))
        return Dataset.from_list([{"question": "q", "reference_answer": "a", "question_source": "s"}])

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(ConfigurationError, match=r"source\.options\.path: missing"):
        read("rar-science")
    assert asked == []
    settings, factory = resolve_source(SourceConfig("hub", {"revision": "abc"}, card="rar-science"), SOURCES)
    assert factory(settings.options)[0]["prompt"] == "q"
    settings, factory = resolve_source(SourceConfig("hub", card="rar-science"), SOURCES)
    assert factory(settings.options).fingerprint() == factory(settings.options).fingerprint()
    pinned = "4b69f832234a7b10a2fe24d82616872e725115fb"
    assert asked == [("ScaleAI/RaR-Science", None, revision) for revision in ("abc", pinned, pinned)]


def test_the_questions_of_a_card_are_asked_of_a_set_of_the_hub_too(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"image_id": 7, "objects": {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": ["cat"]}, "image": None}
    monkeypatch.setattr("datasets.load_dataset", lambda dataset_id, name=None, revision=None: Dataset.from_list([row]))
    config = SourceConfig("hub", {"id": "me/cats"}, card="hugging-face-detection")
    settings, factory = resolve_source(config, SOURCES)
    (record,) = factory(settings.options)
    assert (record["id"], record["answer"], settings.box_format) == ("7-cat-0", "1", "xywh")


def test_a_hub_set_without_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigurationError, match=r"source\.options\.id: 'nobody/nothing' could not be loaded .*kind dataset"
    ) as error:
        hub_source({"id": "nobody/nothing"})
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigurationError, match="is no hub id"):
        hub_source({"id": "json"})


CARD = {
    "title": "t",
    "homepage": "h",
    "licence": "l",
    "found_in": "f",
    "schema_checked": "s",
    "kind": "jsonl",
    "columns": {"answer": "a"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licens": "MIT"}, r"own\.yaml: unknown key 'licens', did you mean 'licence'"),
        ({"title": None}, r"own\.yaml\.title: must be a text"),
        ({"task": "maths"}, r"own\.yaml\.task: 'maths' is unknown; did you mean 'math'"),
        ({"columns": {"promt": "q"}}, r"own\.yaml\.columns\.promt: 'promt' is unknown; did you mean 'prompt'"),
        ({"hub": {"revsion": "a"}}, r"own\.yaml\.hub: the key: 'revsion' is unknown"),
        ({"transforms": ["unbox"]}, r"transforms\[0\]: must be a mapping"),
        ({"transforms": [{"column": "answer", "do": "unbx"}]}, r"transforms\[0\]\.do: 'unbx' is unknown; did you"),
        (
            {"transforms": [{"column": "answr", "do": "unbox"}]},
            r"the column: 'answr' is unknown; did you",
        ),
        ({"transforms": [{"column": "answer", "do": ["unbox"]}]}, r"transforms\[0\]\.do: .*'unbox'.* is unknown"),
        ({"transforms": [{"do": "unbox"}]}, r"transforms\[0\]\.column: must name"),
        ({"transforms": [{"column": "answer", "do": "strip_prefix"}]}, r"transforms\[0\]\.text: missing"),
        (
            {"transforms": [{"column": "answer", "do": "item", "idx": 1}]},
            r"transforms\[0\]: unknown key 'idx', did you",
        ),
        (
            {"transforms": [{"column": "answer", "do": "item", "index": "1"}]},
            r"transforms\[0\]\.index: must be a whole number",
        ),
    ],
)
def test_a_wrong_card_names_its_file_and_key(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**CARD, **change}))
    with pytest.raises(ConfigurationError, match=message):
        read_card(path)


def test_a_card_of_ones_own_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**CARD, "task": "exact"}))
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "a": "x"}\n')
    (record,) = read(str(tmp_path / "own.yaml"), path=str(tmp_path / "a.jsonl"))
    assert (record.answer, record.source) == ("x", "own")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SourceConfig(card="dapo-math-17"), "source.card: 'dapo-math-17' is unknown .*; did you mean 'dapo-math-17k'"),
        (SourceConfig(card="nowhere.yaml"), "source.card: no file 'nowhere.yaml'"),
        (SourceConfig("coco", card="virl39k"), "the card virl39k is read as 'dataset', and not as 'coco'"),
        (SourceConfig("hub", card="virl39k"), "the card virl39k names no data set on the hub"),
    ],
)
def test_a_config_that_names_no_card_says_so(settings: SourceConfig, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve_source(settings, SOURCES)


def test_a_source_needs_a_kind_or_a_card() -> None:
    with pytest.raises(ConfigurationError, match=r"source\.kind: missing"):
        PrepareConfig(SourceConfig(), "out").check()


def test_a_changed_transform_changes_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "a": "x"}\n')
    prints = []
    for template in ("{value}!", "{value}?"):
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({**CARD, "prompt_template": template}))
        config = SourceConfig(card=str(tmp_path / "own.yaml"), options={"path": str(tmp_path / "a.jsonl")})
        settings, factory = resolve_source(config, SOURCES)
        prints.append(factory(settings.options).fingerprint())
    assert prints[0] != prints[1]


def test_cards_travel_to_worker_processes(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}+{n}?", "solution": str(2 * n)} for n in range(40)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    source = SourceConfig(card="dapo-math-17k-processed", options={"path": str(tmp_path / "train.parquet")})
    result = prepare(PrepareConfig(source, str(tmp_path / "out"), workers=1), console=quiet())
    assert result.records == 40


def test_values_that_a_transform_cannot_take_are_bad_records() -> None:
    calls = [
        lambda: parse_json("{"),
        lambda: parse_json(None),
        lambda: item("text"),
        lambda: item([], 0),
        lambda: key({"a": 1}, "b"),
        lambda: unbox("\\boxed{1"),
        lambda: after_thinking("<think>Well"),
        lambda: rename("rule", {"model": "open"}),
        lambda: join_folder(3, "images"),
        lambda: yes_no("true"),
        lambda: objects({"bbox": [[1, 2, 3, 4]], "category": [7]}),
        lambda: objects([{"bbox": [1, 2, 3, 4]}], ["cat"]),
        lambda: objects({"bbox": [[1, 2, 3, 4]], "category": []}),
        lambda: objects({"bbox": 3}),
    ]
    for call in calls:
        with pytest.raises(RecordError):
            call()
    assert find_card("virl39k").name == "virl39k.yaml"
    assert len(TRANSFORMS) == 13
