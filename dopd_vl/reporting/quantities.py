"""What runs log, in the order in which a reader wants it, and what it is called there."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SECTIONS = (
    ("Accuracy", r"eval_(\w+_)?accuracy|rollout_accuracy"),
    ("Entropy", r"(eval_)?(\w+_)?entropy(/.+)?"),
    ("Gap and thresholds", r"gap/.+"),
    ("Share of tokens", r"token_share/(?!teacher:).+"),
    ("Share of loss", r"loss_share/(?!teacher:).+"),
    ("Loss", r"loss|token_loss|grad_norm"),
    ("Accuracy by source", r"eval_(\w+_)?accuracy/.+"),
    ("Mass of the likeliest tokens", r"kept_mass/.+|top_\d+_mass/.+"),
    # Whose a token is says nothing of its kind: each divides all tokens anew.
    ("By teacher", r"(token_share|loss_share|rollout_accuracy|logp)/teacher:.+|teacher_wait_seconds"),
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
    "teacher_wait_seconds": "waited for served teachers (s a step)",
    "completions/mean_length": "response length (tokens)",
    "completions/clipped_ratio": "responses cut at the limit",
}
_SHARES = re.compile(
    r"eval_(\w+_)?(accuracy(/.+)?|clipped)|rollout_accuracy(/.+)?|(token|loss)_share/.+|completions/clipped_ratio"
    r"|usable_rollouts|undecided_rollouts"
)
_OF_VARIANTS = {
    "accuracy": ("held-out accuracy", ""),
    "entropy": ("held-out entropy", " (nats)"),
    "mean_tokens": ("held-out response length", " (tokens)"),
    "clipped": ("held-out responses cut at the limit", ""),
}
_FAMILIES = {
    "token_share/": "share of tokens, ",
    "loss_share/": "share of loss, ",
    "entropy/": "entropy (nats), ",
    "kept_mass/": "mass kept by the Top-K, ",
    "eval_accuracy/": "held-out accuracy, ",
    "rollout_accuracy/": "accuracy of the rollouts, ",
    "logp/": "log-probability of a response's token (nats), ",
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

    >>> title_of("token_share/HS"), title_of("eval_hints_accuracy/story"), title_of("learning_rate")
    ('share of tokens, HS', 'held-out accuracy with hints, story', 'learning_rate')
    >>> title_of("token_share/teacher:math")
    'share of tokens, teacher math'
    """
    for prefix, words in _FAMILIES.items():
        if name.startswith(prefix):
            return words + re.sub("^teacher:", "teacher ", name.removeprefix(prefix))
    quantities = "|".join(_OF_VARIANTS)
    if name not in _TITLES and (found := re.fullmatch(rf"eval_(?:(\w+)_)?({quantities})(?:/(.+))?", name)):
        variant, quantity, source = found.groups()
        words, unit = _OF_VARIANTS[quantity]
        return words + (f" with {variant}" if variant else "") + unit + (f", {source}" if source else "")
    return _TITLES.get(name, name)


def file_stem(name: str) -> str:
    """A quantity as the name of a file, for any file system."""
    return re.sub("[/:]", "-", name)


def is_share(name: str) -> bool:
    """Whether a quantity is a share, 0 to 1, of something that is counted; it is shown in per cent."""
    return _SHARES.fullmatch(name) is not None
