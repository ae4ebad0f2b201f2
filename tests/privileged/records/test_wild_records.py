"""Records as people have them, through the real command: right and counted where mended, or set aside with a reason."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from privileged_samples import Prepared, boxes_of, noise, pixels_of, prepare_by_command
from test_image_safety import png_of


def prepare_records(folder: Path, *records: dict[str, Any], **settings: Any) -> Prepared:
    lines = [
        json.dumps({"id": str(number), "prompt": f"What is in picture {number}?", "answer": "cat", **record})
        for number, record in enumerate(records)
    ]
    (folder / "records.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = {"kind": "jsonl", "options": {"path": "records.jsonl"}, "default_task": "exact"}
    return prepare_by_command(folder, source, **settings)


def pictures(folder: Path, count: int) -> list[str]:
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        noise(seed=number).save(folder / name)
    return names


@pytest.mark.parametrize(
    ("one", "two"),
    [("<image 1>", "<image 2>"), ("<image_1>", "<image_2>"), ("[IMG1]", "[IMG2]"), ("<Image-1>", "<img2>")],
)
def test_numbered_markers_put_the_images_and_their_boxes_in_order(tmp_path: Path, one: str, two: str) -> None:
    names = pictures(tmp_path, 2)
    box = {"label": "cat", "bbox": [1, 2, 10, 20], "image": 1}
    record = {"prompt": f"Is {two} like {one}?", "images": names, "privileged": {"boxes": [box]}}
    done = prepare_records(tmp_path, record)
    row = done.rows["0"]
    assert row["prompt"][0]["content"] == "Is <image> like <image>?"
    assert np.array_equal(pixels_of(row, 0), np.array(noise(seed=1)))
    assert np.array_equal(pixels_of(row, 1), np.array(noise(seed=0)))
    assert (boxes_of(row), row["privileged"]["boxes"][0]["image"]) == ([("cat", [1, 2, 10, 20])], 0)
    assert done.found["markers_numbered"] == 1
    assert "1 markers_numbered" in done.told


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("<image 1> or <image 1>?", "each must stand once"),
        ("<image 0> or <image 1>?", "each must stand once"),
        ("Only <image 2>?", "each must stand once"),
        ("<image> or <image 2>?", "each must stand once"),
        ("[IMG] or [IMG]?", "marker_unknown: the prompt holds [IMG]"),
        ("<image> like <image> in <video>?", "marker_unknown: the prompt holds <video>"),
        ("<IMAGE> or <image_placeholder>?", "marker_unknown: the prompt holds <IMAGE>"),
        ('[{"role": "user", "content": "What?"}]', "JSON text of messages"),
    ],
)
def test_a_prompt_whose_marks_are_not_understood_is_set_aside(tmp_path: Path, prompt: str, reason: str) -> None:
    done = prepare_records(tmp_path, {"prompt": prompt, "images": pictures(tmp_path, 2)}, {})
    assert list(done.rows) == ["1"]
    assert reason in done.rejected["0"]
    if "marker_unknown" in reason:
        assert done.found["marker_unknown"] == 1
        kept = prepare_records(
            tmp_path, {"prompt": prompt, "images": ["0.png", "1.png"]}, audit={"severity": {"marker_unknown": "warn"}},
            output="kept",
        )  # fmt: skip
        assert kept.rows["0"]["prompt"][0]["content"] == prompt


def test_numbers_in_hints_are_not_left_to_mean_another_image(tmp_path: Path) -> None:
    record = {"images": pictures(tmp_path, 2), "privileged": {"hints": ["Look at <image 2> first."]}}
    done = prepare_records(
        tmp_path,
        {"prompt": "Is <image 2> like <image 1>?", **record},
        {"prompt": "Is <image 1> like <image 2>?", **record},
    )
    assert list(done.rows) == ["1"]
    assert "privileged text numbers the images" in done.rejected["0"]


def test_hints_as_json_text_are_the_list_that_they_are(tmp_path: Path) -> None:
    def hinted(hints: Any) -> dict[str, Any]:
        return {"privileged": {"hints": hints}}

    done = prepare_records(
        tmp_path, hinted('["Look.", "Count."]'), hinted("[1] Look closely."), hinted("['Look.', 'Count.']"),
        hinted('{"first": "Look."}'),
    )  # fmt: skip
    hints = {name: row["privileged"]["hints"] for name, row in done.rows.items()}
    assert hints == {"0": ["Look.", "Count."], "1": ["[1] Look closely."]}
    assert done.found["hints_from_json"] == 1
    assert "is the text of a list, but no JSON" in done.rejected["2"]
    assert "must be a list, not dict" in done.rejected["3"]


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff \u2060", "\u3164", "\u2800\ufe0f", "\u00ad"])
def test_what_nobody_can_see_is_no_text(tmp_path: Path, blank: str) -> None:
    hidden = {"answer": "4", "privileged": {"hints": [blank, "Count."]}}
    done = prepare_records(tmp_path, {"answer": blank}, {"prompt": blank}, hidden)
    assert done.rejected == {
        "0": "answer is empty, but for characters that are not seen",
        "1": "the last user message has no text",
    }
    assert done.rows["2"]["privileged"]["hints"] == ["Count."]


def test_a_line_with_a_key_twice_or_a_broken_id_is_set_aside(tmp_path: Path) -> None:
    prepare_records(tmp_path, {})
    lines = [
        '{"id": "a", "prompt": "What?", "answer": "cat", "answer": "dog"}',
        '{"id": "\\ud800", "prompt": "Who?", "answer": "cat"}',
        '{"id": "b", "prompt": "Why?", "answer": "cat"}',
    ]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    source = {"kind": "jsonl", "options": {"path": "records.jsonl"}, "default_task": "exact"}
    done = prepare_by_command(tmp_path, source, overwrite=True, sample=5)
    assert list(done.rows) == ["b"]
    assert done.rejected["records-00000000"] == "line 1 of records.jsonl: the key 'answer' stands twice"
    assert "lone surrogate" in done.rejected["\\ud800"]


def test_an_answer_of_true_is_refused_with_what_to_do(tmp_path: Path) -> None:
    done = prepare_records(tmp_path, {"answer": True}, {})
    assert done.rejected == {"0": "answer is True; a card's transform yes_no says what true and false mean"}


@pytest.mark.parametrize("prefix", ["", "/9j/", "data:image/png;base64,"])
def test_a_picture_as_base64_text_is_refused_in_a_line_that_can_be_read(tmp_path: Path, prefix: str) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, format="PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    done = prepare_records(tmp_path, {"images": [prefix + text]}, {"images": [{"path": prefix + text[:100]}]}, {})
    assert len(text) > 1000
    for reason in (done.rejected["0"], done.rejected["1"]):
        assert text[:30] in reason
        assert len(reason) < 250
    assert "base64 text is not read" in done.rejected["0"]


def test_the_same_question_with_another_answer_is_a_conflict_and_counted(tmp_path: Path) -> None:
    question = {"prompt": "Which animal is it?"}
    done = prepare_records(tmp_path, *({**question, "answer": answer} for answer in ("cat", "(Cat)", "dog")))
    assert list(done.rows) == ["0"]
    assert done.rejected == {
        "1": "duplicate_record: same prompt and images as '0'",
        "2": "answer_conflict: '0' has this prompt and another answer",
    }
    assert (done.found["duplicate_record"], done.found["answer_conflict"]) == (1, 1)
    assert "1 answer_conflict" in done.told


def saved(folder: Path, image: Image.Image | bytes, name: str) -> dict[str, Any]:
    if isinstance(image, bytes):
        (folder / name).write_bytes(image)
    else:
        image.save(folder / name)
    return {"images": [name]}


def test_what_is_transparent_stays_to_be_seen(tmp_path: Path) -> None:
    def drawn(colour: tuple[int, int, int], around: int = 0) -> Image.Image:
        image = Image.new("RGBA", (8, 6), (*colour, around))
        image.paste((*colour, 255), (2, 2, 5, 4))
        return image

    done = prepare_records(
        tmp_path,
        saved(tmp_path, drawn((255, 255, 255)), "white.png"),
        saved(tmp_path, drawn((200, 0, 0)), "red.png"),
        saved(tmp_path, drawn((255, 255, 255), around=255), "opaque.png"),
        saved(tmp_path, Image.new("RGBA", (8, 6), (9, 9, 9, 0)), "nothing.png"),
    )
    assert pixels_of(done.rows["0"])[3, 3].tolist() == [255, 255, 255]
    assert pixels_of(done.rows["0"])[0, 0].tolist() == [0, 0, 0], "on white it would be blank"
    assert pixels_of(done.rows["1"])[3, 3].tolist() == [200, 0, 0]
    assert pixels_of(done.rows["1"])[0, 0].tolist() == [255, 255, 255]
    assert done.found["image_transparent"] == 2
    assert "nothing.png" in done.rejected["3"]
    assert "wholly transparent" in done.rejected["3"]


@pytest.mark.parametrize(("bits", "brightest"), [(8, 200), (10, 1023), (12, 4095), (14, 16383), (16, 65535)])
def test_grey_of_few_bits_in_a_file_of_sixteen_keeps_its_brightness(tmp_path: Path, bits: int, brightest: int) -> None:
    values = np.linspace(0, brightest, 48).astype(np.uint16).reshape(6, 8)
    done = prepare_records(tmp_path, saved(tmp_path, Image.fromarray(values), "deep.png"))
    expected = np.round(values * (255 / (2**bits - 1)))
    assert np.array_equal(pixels_of(done.rows["0"])[..., 0], expected)
    assert done.found["image_scaled"] == 1


def test_sixteen_bit_colour_is_counted_and_refused_where_it_would_be_nearly_black(tmp_path: Path) -> None:
    def colour(brightest: int) -> bytes:
        pixels = np.linspace(0, brightest, 8 * 6 * 3).astype(">u2").reshape(6, 24)
        return png_of(8, 6, 16, 2, b"".join(b"\0" + row.tobytes() for row in pixels))

    done = prepare_records(
        tmp_path, saved(tmp_path, colour(65535), "full.png"), saved(tmp_path, colour(4095), "twelve.png")
    )
    assert done.found["image_scaled"] == 1
    assert "would be nearly black" in done.rejected["1"]


def test_boxes_in_a_turned_picture_need_its_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    noise().save(tmp_path / "a.jpg", exif=exif)
    boxed = {"images": ["a.jpg"], "privileged": {"boxes": [{"label": "cat", "bbox": [1, 2, 10, 20]}]}}
    done = prepare_records(tmp_path, boxed, {**boxed, "image_sizes": [[32, 48]]}, {"images": ["a.jpg"]})
    assert list(done.rows) == ["1", "2"]
    assert "nothing shows whether its boxes are of the picture before or after" in done.rejected["0"]
    assert done.found["image_turned"] == 2
