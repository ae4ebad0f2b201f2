"""What runs log, in the order in which a reader wants it, and what it is called there."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SECTIONS = (
    ("Accuracy", r"eval_(\w+_)?accuracy|rollout_accuracy"),
    ("Entropy", r"(eval_)?(\w+_)?entropy(/.+)?"),
    ("Gap and thresholds", r"gap/.+"),
    ("Share of tokens", r"token_share/.+"),
    ("Share of loss", r"loss_share/.+"),
    ("Loss", r"loss|token_loss|grad_norm"),
    ("Accuracy by source", r"eval_(\w+_)?accuracy/.+"),
    ("Mass of the likeliest tokens", r"kept_mass/.+|top_\d+_mass/.+"),
    ("Responses", r"completions/.+|eval_(\w+_)?(mean_tokens|clipped)"),
)
_OTHERS = "Everything else"
_NOT_DRAWN = ("step", "epoch")
_TITLES = {
    "eval_accuracy": "held-out accuracy",
    "rollout_accuracy": "accuracy of the rollouts",
    "eval_entropy": "held-out entropy (nats)",
    "entropy": "student's entropy in learning (nats)",
    "gap/mean": "mean gap A (nats)",
    "gap/threshold": "threshold of A (nats)",
    "gap/teacher_prob_threshold": "threshold of q_T",
    "gap/student_prob_threshold": "threshold of q_S",
    "token_loss": "loss per token",
    "completions/mean_length": "response length (tokens)",
    "completions/clipped_ratio": "responses cut at the limit",
}
_FAMILIES = {
    "token_share/": "share of tokens, ",
    "loss_share/": "share of loss, ",
    "entropy/": "entropy (nats), ",
    "kept_mass/": "mass kept by the Top-K, ",
    "eval_accuracy/": "held-out accuracy, ",
}


@dataclass(frozen=True)
class Section:
    """Quantities that belong together."""

    title: str
    names: list[str]


def sections(names: Iterable[str]) -> list[Section]:
    """The quantities that are drawn, each in one section; sections without any are left out."""
    found: dict[str, list[str]] = {title: [] for title in (*(title for title, _ in _SECTIONS), _OTHERS)}
    for name in sorted(set(names) - set(_NOT_DRAWN), key=lambda name: (name not in _TITLES, name)):
        found[next((title for title, form in _SECTIONS if re.fullmatch(form, name)), _OTHERS)].append(name)
    return [Section(title, some) for title, some in found.items() if some]


def title_of(name: str) -> str:
    """A quantity in words; its own name where there are none.

    >>> title_of("token_share/HS"), title_of("learning_rate")
    ('share of tokens, HS', 'learning_rate')
    """
    for prefix, words in _FAMILIES.items():
        if name.startswith(prefix):
            return words + name.removeprefix(prefix)
    return _TITLES.get(name, name)
