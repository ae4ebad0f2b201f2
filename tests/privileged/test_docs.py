"""The configs that ship and the page that explains them say what the code does."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dopd_vl.common.configuration import read_config, settings_of
from dopd_vl.common.resources import shipped
from privileged import VARIANTS
from privileged.annotators.settings import PART_NAMES, AnnotateConfig, BudgetConfig, SamplingConfig
from privileged.audit.audit import SEVERITIES, AuditConfig
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.sources.cards import SourceCard, resolve_source
from privileged.sources.coco import CocoOptions
from privileged.sources.detection import VocOptions, YoloOptions
from privileged.sources.questions import read_questions
from privileged.sources.sources import SOURCES, DatasetOptions, HubOptions, JsonlOptions, check_columns
from privileged.sources.transforms import TRANSFORMS

ROOT = Path(__file__).parents[2]
AUDIT_PAGE = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SOURCES_PAGE = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
SHIPPED = sorted((ROOT / "configs" / "prepare").glob("*.yaml"))
OPTIONS = {
    "jsonl": JsonlOptions,
    "dataset": DatasetOptions,
    "hub": HubOptions,
    "coco": CocoOptions,
    "yolo": YoloOptions,
    "voc": VocOptions,
}
EXAMPLE = {
    "id": "add-0",
    "answer": "9",
    "prompt": [{"role": "user", "content": "Add the digits."}],
    "images": [Image.new("RGB", (48, 48))],
    "privileged": {
        "final_answer": "9",
        "hints": ["Find every digit.", "Add them."],
        "hints_executed": ["The digits are 7 and 2.", "7 + 2 = 9."],
        "hint_summary": "Read the digits, then add.",
        "caption": "Two digits, 7 and 2.",
        "boxes": [
            {"label": "7", "bbox": [2, 2, 14, 14], "caption": "a slanted 7", "image": 0},
            {"label": "2", "bbox": [34, 34, 46, 46], "caption": None, "image": 0},
        ],
        "wrong_hint": "Multiply the digits.",
    },
}


def check_config(settings):
    source, _ = resolve_source(SourceConfig(**settings["source"]), dict.fromkeys([*OPTIONS, "nano"]))
    audit = AuditConfig(**settings.get("audit", {}))
    annotate = check_annotate(settings["annotate"]) if "annotate" in settings else None
    PrepareConfig(**{**settings, "source": source, "audit": audit, "annotate": annotate}).check()
    if source.kind != "nano":
        options = settings_of(OPTIONS[source.kind], source.options, "source.options")
        check_columns(getattr(options, "columns", {}))
        if source.kind in ("coco", "yolo", "voc"):
            read_questions(options.questions)


def check_annotate(settings):
    nested = {"sampling": SamplingConfig, "budget": BudgetConfig}
    settings = {key: nested[key](**value) if key in nested else value for key, value in settings.items()}
    annotate = AnnotateConfig(**settings)
    annotate.check()
    return annotate


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_hold_only_what_exists(path):
    check_config(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_configs_on_the_page_hold_only_what_exists():
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE + AUDIT_PAGE, re.DOTALL)]
    whole = [block for block in blocks if "source" in block]
    assert len(whole) >= 3
    for block in whole:
        check_config(block)
    audits = [AuditConfig(**block["audit"]) for block in blocks if "audit" in block]
    assert len(audits) == 2
    for audit in audits:
        audit.resolved()
    assert audits[0].max_hint_words == AuditConfig().max_hint_words
    assert audits[1].decontaminate_ngram == AuditConfig().decontaminate_ngram


def test_sections_on_the_page_about_annotation_hold_only_what_exists():
    page = (ROOT / "docs" / "annotating.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert {block["annotate"]["kind"] for block in blocks} == {"endpoint", "local", "function", "detector"}
    for block in blocks:
        check_annotate(block["annotate"])
    for part in PART_NAMES:
        assert f"| `{part}` |" in page


def test_the_config_on_the_page_of_the_judge_can_be_used(tmp_path):
    page = (ROOT / "docs" / "judging.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "config.yaml").write_text(block)
    config = read_config(PrepareConfig, ["--config", str(tmp_path / "config.yaml")], "dopd-vl prepare")
    config.check()
    assert config.audit.model.kind == "local"


def test_commands_on_the_page_are_of_shipped_configs_or_the_page_own():
    for config in re.findall(r"dopd-vl prepare --config (\S+)", PAGE):
        assert config == "signs.yaml" or (ROOT / config).is_file()


def test_prompts_on_the_page_are_what_the_variants_render():
    fences = re.findall(r"^`(\w+)`[^\n]*\n(`{3,4})text\n(.*?)\n\2$", PAGE, re.DOTALL | re.MULTILINE)
    shown = {name: text for name, _, text in fences}
    assert set(VARIANTS) - set(shown) == {
        *("none", "evidence_crop", "masked_crop", "zoomed", "masked", "degraded", "half_resolution", "augmented"),
        *("no_prompt", "other_hints_executed", "other_box_label"),
    }
    sign = {
        "id": "sign",
        "prompt": [{"role": "user", "content": "<image>Which colour is the sign?"}],
        "privileged": {"hints": ["Find the sign.", "Name its colour."]},
    }
    for name, variant in VARIANTS.items():
        if name in shown or variant.modality == "vision":
            example = {**EXAMPLE, "other": sign} if name == "other_hints" else EXAMPLE
            if name != "other_box_label":
                rendered = variant.render(example).messages[-1]["content"]
                assert rendered == shown.get(name, "Add the digits.")


def test_tables_on_the_page_name_every_variant_and_finding():
    for name, variant in VARIANTS.items():
        assert re.search(rf"^\|[^|]*`{name}`[^|]*\| {variant.modality} \|", PAGE, re.MULTILINE), name
    for code, severity in SEVERITIES.items():
        assert f"| `{code}` | {severity} |" in AUDIT_PAGE
    assert "(audit.md)" in PAGE


def test_the_page_of_sources_names_every_card_kind_and_transform_and_its_configs_parse():
    for path in shipped("data/sources").glob("*.yaml"):
        assert f"| `{path.stem}` |" in SOURCES_PAGE
    for name in (*SOURCES, *TRANSFORMS):
        assert f"`{name}`" in SOURCES_PAGE
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", SOURCES_PAGE, re.DOTALL)]
    for block in blocks:
        if "source" in block:
            check_config(block)
    (own,) = [block for block in blocks if "title" in block]
    SourceCard(**own).steps("the page")
    for config in re.findall(r"dopd-vl prepare --config (\S+)", SOURCES_PAGE):
        assert (ROOT / config).is_file()
