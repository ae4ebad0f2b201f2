"""Conversations in the forms of LLaVA, ShareGPT and chat messages, through the real command."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from privileged_samples import noise, pixels_of, prepare_by_command


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def prompt_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row["prompt"]]


QUOTED = 'A heron "stands", [alone].'
LLAVA = [
    {
        "id": "33471",
        "image": "coco/1.png",
        "conversations": turns("<image>\nWhat is it?", "A bus.", "Its colour?", "Red."),
    },
    {"id": "33471", "image": "coco/2.png", "conversations": turns("Describe it.\n<image>", QUOTED)},
    {"id": "text", "conversations": turns("What is 2 + 2?", "4")},
]


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    (tmp_path / "images" / "coco").mkdir(parents=True)
    for number in (1, 2):
        noise(seed=number).save(tmp_path / "images" / "coco" / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("form", ["array", "lines"])
def test_every_reply_of_a_llava_conversation_is_a_record(llava: Path, form: str) -> None:
    text = json.dumps(LLAVA, indent=2) if form == "array" else "\n".join(map(json.dumps, LLAVA))
    (llava / "mix.json").write_text(text)
    done = prepare_by_command(llava, {"card": "llava", "options": {"path": "mix.json", "images": "images"}})
    assert (done.code, done.rejected) == (0, {}), done.told
    assert {name: row["answer"] for name, row in done.rows.items()} == {
        "33471-0-0": "A bus.",
        "33471-0-1": "Red.",
        "33471-1-0": QUOTED,
        "text-2-0": "4",
    }
    second = done.rows["33471-0-1"]
    assert prompt_of(second) == [("user", "<image>\nWhat is it?"), ("assistant", "A bus."), ("user", "Its colour?")]
    assert (pixels_of(second) == noise(seed=1)).all()
    assert (second["task"], second["source"]) == ("open", "llava")
    assert done.rows["text-2-0"]["images"] == []
    assert "is not read" not in done.told


@pytest.mark.parametrize(
    ("chosen", "answers"), [("first", ["one"]), ("last", ["three"]), ("each", ["one", "two", "three"])]
)
def test_the_replies_that_are_asked_for(tmp_path: Path, chosen: str, answers: list[str]) -> None:
    said = [{"from": "system", "value": "Be brief."}, *turns("1?", "one", "2?", "two", "3?", "three", "4?")]
    (tmp_path / "a.json").write_text(json.dumps([{"conversations": said}]))
    done = prepare_by_command(tmp_path, {"card": "sharegpt", "options": {"path": "a.json", "turns": chosen}})
    assert [row["answer"] for row in done.rows.values()] == answers
    assert all(prompt_of(row)[0] == ("system", "Be brief.") for row in done.rows.values())


@pytest.mark.parametrize("kind", ["jsonl", "dataset"])
def test_chat_messages_are_read_from_lines_and_tables(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = []
    for number, system in enumerate(["Count.", ""]):
        said = [{"role": "user", "content": f"{number} + 1?"}, {"role": "assistant", "content": str(number + 1)}]
        rows.append({"messages": said, "system": system})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    path = "a.jsonl" if kind == "jsonl" else "a.parquet"
    source = {"card": "messages", "kind": kind, "options": {"path": path}, "default_task": "number"}
    done = prepare_by_command(tmp_path, source)
    assert {name: (row["answer"], row["task"]) for name, row in done.rows.items()} == {
        "a-0-0": ("1", "number"),
        "a-1-0": ("2", "number"),
    }
    assert prompt_of(done.rows["a-0-0"]) == [("system", "Count."), ("user", "0 + 1?")]
    assert prompt_of(done.rows["a-1-0"]) == [("user", "1 + 1?")]


BAD = [
    ("hello", "the conversation must be a list, not str"),
    (None, "the conversation is missing"),
    ([], "has no reply"),
    (["hello"], "turn 0 must be a mapping"),
    (turns("2 + 2?"), "has no reply"),
    ([{"from": "gpt", "value": "Hello."}], "turn 0 is of the assistant, and nothing was asked before it"),
    ([*turns("a?"), *turns("b?", "c")], "turns 0 and 1 are both of the user"),
    ([{"from": "function_call", "value": "f"}], "turn 0 is from 'function_call'; known: system, human"),
    ([{"from": 3, "value": "f"}], "turn 0 is from 3"),
    ([{"value": "f"}], "turn 0 must have one of from and role, and has 0"),
    ([{"from": "human", "role": "user", "value": "f"}], "turn 0 must have one of from and role, and has 2"),
    ([{"from": "human", "value": 7}], "must be a list, not int"),
    ([*turns("a?", "b"), {"from": "system", "value": "c"}], "only the first may be one"),
    (turns("a?", "<think>no</think>b"), "holds the control token <think>"),
    (turns("a?", " "), "answer is empty"),
    (turns("<image>a?", "b"), "1 <image> markers, but the record has 0 images"),
]


def test_what_is_no_conversation_is_set_aside_with_its_row(tmp_path: Path) -> None:
    rows: list[Any] = [{"conversations": value} for value, _ in BAD]
    rows += [{"conversations": turns("a?", "b"), "tools": '[{"name": "f"}]'}, 7, {"conversations": turns("a?", "b")}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    done = prepare_by_command(tmp_path, {"card": "sharegpt", "options": {"path": "a.json"}})
    assert done.code == 0, done.told
    assert list(done.rows) == ["a-18-0"]
    reasons = list(done.rejected.values())
    for reason, (_, wanted) in zip(reasons, BAD, strict=False):
        assert wanted in reason
    assert "about tools" in reasons[-2]
    assert reasons[-1] == "entry 18 of a.json is a int, no JSON object"
    assert "a-row-0" in done.rejected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"a": 1}, {"b": "x]', "begins an array that does not end, after 1 entries"),
        ('[{"a": 1}', "begins an array that does not end, after 0 entries"),
        ('[{"a": 1}] [2]', "goes on after its array, at byte 10"),
        ("[ ]", "holds no records"),
    ],
)
def test_an_array_that_is_not_whole_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.json").write_text(text)
    done = prepare_by_command(tmp_path, {"kind": "jsonl", "options": {"path": "a.json"}})
    assert done.code == 2
    assert told in done.told


def test_entries_of_an_array_are_the_objects_that_json_reads(tmp_path: Path) -> None:
    rows = [{"prompt": text, "answer": "x"} for text in ('a"]}, \\', "\\\\", "ä,[{", "}")]
    text = "\ufeff \n" + json.dumps(rows, ensure_ascii=False, indent=1).replace("\n]", ",\n{no},]")
    (tmp_path / "a.JSON").write_text(text, encoding="utf-8")
    done = prepare_by_command(tmp_path, {"kind": "jsonl", "options": {"path": "a.JSON"}, "default_task": "exact"})
    assert [row["prompt"][0]["content"] for row in done.rows.values()] == [row["prompt"] for row in rows]
    assert ["entry 5 of a.JSON is no JSON" in reason for reason in done.rejected.values()] == [True]


def test_turns_that_cannot_be_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"conversations": turns("a?", "b")}]))
    done = prepare_by_command(tmp_path, {"card": "sharegpt", "options": {"path": "a.json", "turns": "lst"}})
    assert "source.options.turns: 'lst' is unknown; did you mean 'last'?" in done.told
    done = prepare_by_command(tmp_path, {"card": "messages", "options": {"path": "a.json"}})
    assert "source.options.columns.prompt: the data has no column 'messages'; known: conversations" in done.told
