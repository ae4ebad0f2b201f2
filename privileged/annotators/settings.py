"""The settings of annotation, as dataclasses that a YAML file fills."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dopd_vl.common.configuration import check_between, check_choice, existing_path
from dopd_vl.common.errors import ConfigurationError

KINDS = ("endpoint", "local", "detector")
PART_NAMES = ("hints", "hints_executed", "hint_summary", "caption", "boxes", "wrong_hint")
"""What can be asked for. `caption` and `boxes` are asked of records with images only."""

IMAGE_PARTS = ("caption", "boxes")
NOT_CONTENT = ["url", "key_env", "device", "concurrency", "timeout", "retries", "budget", "cache", "dry_run", "prompts"]
"""Settings that decide how the annotations are made and not what they are. Prompts count by their text."""

MOST = 1e15
"""Of a budget and its prices: any finite number will do."""


@dataclass
class SamplingConfig:
    """How a model samples its replies.

    Args:
        temperature: 0 is greedy.
        top_p: Nucleus.
        max_tokens: Longest reply, thinking included. A reply that is cut off there counts as a bad one.
        seed: Seed of the first try; the next try of a part takes the next seed.
        extra: What else goes into an endpoint's request body, e.g. {chat_template_kwargs: {enable_thinking: false}}.
    """

    temperature: float = 0.7
    top_p: float = 0.8
    max_tokens: int = 1024
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What a model's replies depend on. The seed is the request's."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "seed"}


@dataclass
class BudgetConfig:
    """What annotation may cost. The spend is kept with the cache of replies, and so over restarts.

    Args:
        tokens: Prompt and reply tokens in all; null is no limit.
        money: In the currency of the prices; null is no limit.
        price_input: For a million prompt tokens.
        price_output: For a million reply tokens.
    """

    tokens: int | None = None
    money: float | None = None
    price_input: float = 0.0
    price_output: float = 0.0


@dataclass
class AnnotateConfig:
    """Who makes the privileged parts that a source lacks, and how.

    Args:
        kind: "endpoint" (any server that speaks the OpenAI API), "local" (a transformers model) or "detector" (a
            function of yours that finds boxes).
        model: The model's name at the endpoint, or the folder or hub name of a local one.
        parts: What to make: hints, hints_executed, hint_summary, caption, boxes, wrong_hint.
        url: The endpoint's address, up to and with /v1.
        key_env: The environment variable that holds the endpoint's key; null for an endpoint without one.
        detector: `module:function`; with another kind it makes the boxes, and the model makes the rest.
        optional: Parts without which a record is kept all the same. A record that lacks another part is set aside.
        replace: Also make parts that the source brings.
        recheck: Show each part to the model again and drop the poor ones.
        tries: How often a part is asked for before a bad or poor reply is final.
        prompts: A folder with prompts of your own; what it lacks is taken from those that ship.
        sampling: How replies are sampled.
        concurrency: Requests in flight at most (local models and detectors work one by one).
        timeout: Seconds for one request.
        retries: How often a request is repeated after 429, 5xx, a time-out or a lost connection.
        budget: What it may cost.
        cache: The folder that keeps every reply. Default: the output's name with ".replies" at its end.
        device: Of a local model: cpu, cuda, cuda:1, ...
        dtype: Of a local model: auto, float32, bfloat16, ...
        dry_run: Print what the annotation would cost, and stop.
    """

    kind: str = "endpoint"
    model: str | None = None
    parts: list[str] = field(default_factory=lambda: ["hints"])
    url: str | None = None
    key_env: str | None = "OPENAI_API_KEY"
    detector: str | None = None
    optional: list[str] = field(default_factory=list)
    replace: bool = False
    recheck: bool = True
    tries: int = 2
    prompts: str | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    concurrency: int = 32
    timeout: float = 120.0
    retries: int = 6
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    cache: str | None = None
    device: str = "cpu"
    dtype: str = "auto"
    dry_run: bool = False

    def check(self) -> None:
        """Raise ConfigurationError, naming the key, when a value cannot be used."""
        check_choice(self.kind, KINDS, "annotate.kind")
        _check_parts(self.parts, PART_NAMES, "annotate.parts")
        if not self.parts:
            raise ConfigurationError(f"annotate.parts: name at least one of {', '.join(PART_NAMES)}")
        _check_parts(self.optional, self.parts, "annotate.optional")
        if self.kind == "detector" and (self.detector is None or self.parts != ["boxes"]):
            raise ConfigurationError("annotate.parts: a detector alone makes [boxes], and annotate.detector names it")
        if self.detector is not None and self.detector.count(":") != 1:
            raise ConfigurationError(f"annotate.detector: {self.detector!r} must have the form module:function")
        if self.kind != "detector" and not self.model:
            raise ConfigurationError(f"annotate.model: kind {self.kind} needs a model")
        if self.kind == "endpoint":
            _check_url(self.url)
        if self.prompts is not None:
            existing_path(self.prompts, "annotate.prompts", "folder")
        if not 0 < self.timeout < math.inf:
            raise ConfigurationError(f"annotate.timeout: {self.timeout} is no number of seconds above 0")
        sampling, budget = self.sampling, self.budget
        for key, value, low, high in (
            ("concurrency", self.concurrency, 1, math.inf),
            ("tries", self.tries, 1, math.inf),
            ("retries", self.retries, 0, math.inf),
            ("sampling.temperature", sampling.temperature, 0, 5),
            ("sampling.max_tokens", sampling.max_tokens, 1, math.inf),
            ("budget.tokens", budget.tokens, 0, MOST),
            ("budget.money", budget.money, 0, MOST),
            ("budget.price_input", budget.price_input, 0, MOST),
            ("budget.price_output", budget.price_output, 0, MOST),
        ):
            check_between(value, low, high, f"annotate.{key}")
        if not 0 < sampling.top_p <= 1:
            raise ConfigurationError(f"annotate.sampling.top_p: {sampling.top_p} is not above 0 and at most 1")
        if budget.money is not None and not budget.price_input and not budget.price_output:
            raise ConfigurationError("annotate.budget.money: needs annotate.budget.price_input and price_output")

    def content(self) -> dict[str, Any]:
        """The settings that decide what the annotations are, for fingerprints."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in NOT_CONTENT}

    def cache_folder(self, output: Path) -> Path:
        return Path(self.cache) if self.cache is not None else output.with_name(f"{output.name}.replies")


def _check_parts(parts: list[str], known: Any, key: str) -> None:
    for part in parts:
        check_choice(part, known, key)
    if len(set(parts)) < len(parts):
        raise ConfigurationError(f"{key}: names a part twice")


def _check_url(url: str | None) -> None:
    if not url:
        raise ConfigurationError("annotate.url: kind endpoint needs an address, such as http://localhost:8000/v1")
    try:
        split = urlsplit(url)
    except ValueError:
        raise ConfigurationError("annotate.url: is no http or https address") from None
    if split.username is not None or split.password is not None or split.query:
        # Not repeated here: it may hold a secret.
        raise ConfigurationError(
            "annotate.url: must hold no user name, password or query; name the key in annotate.key_env"
        )
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ConfigurationError(f"annotate.url: {url!r} is no http or https address")
