"""Small files that stand for much, before the real command: what is held in memory is bounded, not what was sent."""

import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image, TiffImagePlugin
from privileged_samples import noise

from dopd_vl.common.errors import RecordError
from privileged.records.fields import unique_keys
from privileged.records.images import load_image
from tests.commands import dopd_vl

MEMORY = 512 * 2**20
GOOD = {"id": "good", "prompt": "Which?", "answer": "this"}
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)
"""Half a million words in 300 characters."""


def prepare(folder, source, memory=MEMORY, **settings):
    settings |= {"source": {"default_task": "exact", **source}, "output": "out", "max_rejected_share": 1.0}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    done = dopd_vl("prepare", "--config", "config.yaml", cwd=folder, memory=memory)
    assert "Traceback" not in done.stderr
    return done


def rejected(folder):
    text = (folder / "out" / "rejected.jsonl").read_text()
    return {entry["id"]: entry["reason"] for entry in map(json.loads, text.splitlines())}


def write_jsonl(folder, *lines):
    (folder / "set.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return {"kind": "jsonl", "options": {"path": "set.jsonl"}}


def test_the_images_of_a_record_are_bounded_together(tmp_path):
    Image.new("RGB", (3000, 3000), "white").save(tmp_path / "white.png")
    assert (tmp_path / "white.png").stat().st_size < 50_000
    many = {**GOOD, "id": "many", "images": ["white.png"] * 40}
    source = write_jsonl(tmp_path, json.dumps(many), json.dumps(GOOD))
    done = prepare(tmp_path, source, images={"max_pixels": 9_000_000})
    assert done.returncode == 0, done.stderr
    assert "the record's images have too many pixels to be held together" in rejected(tmp_path)["many"]


def test_the_image_files_of_a_record_are_bounded_together(tmp_path):
    (tmp_path / "padded.bmp").write_bytes(encoded(noise(), "BMP") + bytes(2**20))
    many = {**GOOD, "id": "many", "images": ["padded.bmp"] * 300}
    done = prepare(tmp_path, write_jsonl(tmp_path, json.dumps(many), json.dumps(GOOD)))
    assert done.returncode == 0, done.stderr
    assert "the record's image files have too many bytes to be held together" in rejected(tmp_path)["many"]


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["I;16", "RGBA"])
def test_one_picture_takes_a_few_times_its_pixels(mode, tmp_path):
    sides = (4000, 4000)
    grey = Image.fromarray(np.full(sides, 40_000, np.uint16))
    (grey if mode == "I;16" else Image.new(mode, sides, (255, 0, 0, 9))).save(tmp_path / "a.png", compress_level=1)
    source = write_jsonl(tmp_path, json.dumps({**GOOD, "images": ["a.png"]}))
    assert prepare(tmp_path, source, memory=280 * 2**20).returncode == 0


def test_the_pages_of_a_file_are_not_gone_through(monkeypatch):
    pages = encoded(noise(seed=1), "TIFF"), []
    buffer = io.BytesIO()
    noise(seed=1).save(buffer, "TIFF", save_all=True, append_images=[noise(seed=2)] * 40)
    seek = TiffImagePlugin.TiffImageFile._seek
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "_seek", lambda *args: pages[1].append(args) or seek(*args))
    with pytest.raises(RecordError, match="several frames"):
        load_image(buffer.getvalue())
    assert len(pages[1]) < 4
    load_image(pages[0])


@pytest.mark.parametrize("key", ["kpt_shape", "names", "nc"])
def test_a_data_yaml_of_aliases_is_refused(key, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "images" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    text = ALIASES + "".join(f"{name}: {value}\n" for name, value in {"names": "[cat]", key: "*g"}.items())
    (tmp_path / "data.yaml").write_text(text)
    assert len(text) < 500
    options = {"images": "images", "labels": "images", "names": "data.yaml"}
    options["questions"] = [{"question": "How many {label}s?", "answer": "{count}"}]
    done = prepare(tmp_path, {"kind": "yolo", "options": options}, memory=128 * 2**20)
    assert done.returncode == 2
    assert "source.options.names: data.yaml is no YAML (it has the alias *a" in done.stderr


def test_a_readme_of_aliases_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text(f"---\n{ALIASES}configs:\n- config_name: *g\n---\n")
    done = prepare(tmp_path, {"kind": "dataset", "options": {"path": "set"}}, memory=128 * 2**20)
    assert done.returncode == 2
    assert "has configs that cannot be read (it has the alias *a" in done.stderr


def test_a_line_of_millions_of_empty_lists_is_one_bad_record(tmp_path):
    lists = '{"a": [' + ",".join(["[]"] * 8_000_000) + "]}"
    done = prepare(tmp_path, write_jsonl(tmp_path, lists, json.dumps(GOOD)))
    assert done.returncode == 0, done.stderr
    assert list(rejected(tmp_path).values()) == [
        "line 1 of set.jsonl has more than the 4000000 commas and brackets allowed"
    ]


def test_no_json_value_ends_a_preparation(tmp_path):
    values = ["1e999", "-" + "9" * 5000, "9" * 400, "NaN", "[" * 100_000, '{"a":' * 100_000, '"\\ud800"', "-Infinity"]
    odd = []
    for column in ("id", "answer", "image_sizes", "privileged", "prompt", "task", "source", "extra"):
        for value in values:
            fields = {**GOOD, "id": f"odd {len(odd)}", "prompt": f"Which of {len(odd)}?"}
            given = {**{name: json.dumps(text) for name, text in fields.items()}, column: value}
            odd.append("{" + ", ".join(f'"{name}": {text}' for name, text in given.items()) + "}")
    done = prepare(tmp_path, write_jsonl(tmp_path, *odd, json.dumps(GOOD)), memory=None)
    assert done.returncode == 0, done.stderr
    assert "good" not in rejected(tmp_path)


def test_a_doubled_key_is_found_without_comparing_each_with_each():
    class Key(str):
        compared = 0
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            Key.compared += 1
            return str.__eq__(self, other)

    keys = [Key(number) for number in range(1000)]
    with pytest.raises(RecordError, match="the key '999' stands twice"):
        unique_keys([(key, 1) for key in [*keys, Key(999)]])
    assert Key.compared < 10_000
