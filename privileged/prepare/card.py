"""What a finished dataset folder says about itself: the README card and dataset_info.json.

`datasets` keeps a copy of what it loads under the folder's last name and the card's front matter, and not under the
content: the front matter holds a digest of the rows, so that no other folder's copy, or an older one, is taken for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dopd_vl.common.visible import in_card
from privileged.audit.audit import DESCRIPTIONS
from privileged.dataset import CARD_BEGINS
from privileged.rendering.variants import OTHER_PREFIX, VARIANTS
from privileged.schema import features


def card(audit: Mapping[str, Any]) -> str:
    """The README of a dataset; its front matter tells datasets where the data is."""
    counts = audit["counts"]
    numbers = counts["numbers"]
    lines = [
        f"{CARD_BEGINS}{audit['digest']}",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*.parquet",
        "---",
        "",
        "# Privileged dataset",
        "",
        f"{audit['records']} records, {numbers.get('images', 0)} images, {numbers.get('boxes', 0)} boxes; "
        f"{audit['rejected']} records were set aside (`rejected.jsonl`).",
        "",
        "`privileged` holds what a teacher may see and the deployed student never will. All raw annotations are kept; "
        "which of them is shown (the variant) is chosen at training time.",
        "",
        *_table("Source", [(in_card(name), count) for name, count in counts["sources"].items()]),
        *_table("Task (verifier)", counts["tasks"].items()),
        *_table("Variant", [(name, counts["variants"].get(name, 0)) for name in VARIANTS if not _of_another(name)]),
    ]
    if counts.get("illusion"):
        by_score = sorted(counts["illusion"].items(), key=lambda item: int(item[0]))
        lines += _table("Illusion score (nats, rounded down)", by_score)
    if counts["findings"]:
        lines += ["| Audit finding | count | what happens | meaning |", "|---|---|---|---|"]
        for code, count in counts["findings"].items():
            lines.append(f"| {code} | {count} | {audit['severity'][code]} | {DESCRIPTIONS[code]} |")
    else:
        lines.append("The audit found nothing.")
    return "\n".join([*lines, "", f"Prepared from `{audit['source']['kind']}`; settings and counts: `audit.json`.", ""])


def _of_another(name: str) -> bool:
    """What such a variant shows is drawn from the set when it is trained on; no record has it of its own."""
    return name.startswith(OTHER_PREFIX)


def _table(title: str, counts: Iterable[tuple[str, int]]) -> list[str]:
    rows = [f"| {name} | {count} |" for name, count in counts]
    return [f"| {title} | records |", "|---|---|", *rows, ""]


def dataset_info(audit: Mapping[str, Any], data_bytes: int) -> str:
    """dataset_info.json as the datasets library writes it."""
    info = {
        "description": "Privileged dataset: prompts, images, answers and privileged information.",
        "features": features().to_dict(),
        "splits": {"train": {"name": "train", "num_examples": audit["records"], "num_bytes": data_bytes}},
    }
    return json.dumps(info, indent=1) + "\n"
