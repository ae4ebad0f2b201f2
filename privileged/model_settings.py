"""How a model that writes or judges privileged parts is reached and paid, as dataclasses that a YAML file fills."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from dopd_vl.common.configuration import check_between, check_choice
from dopd_vl.common.errors import ConfigurationError

NOT_CONTENT = ("url", "key_env", "device", "concurrency", "timeout", "retries", "budget", "cache")
"""Settings that decide how replies are got and not what they are."""

MOST = 1e15
"""Of a budget and its prices: any finite number will do."""


@dataclass
class SamplingConfig:
    """How a model samples its replies.

    Args:
        temperature: The sampling temperature; 0 is greedy.
        top_p: Tokens are drawn from the likeliest that together have this share of the probability.
        max_tokens: The longest reply in tokens, thinking included. A reply that is cut off there counts as a bad one.
        seed: The seed of the first try; the next try of a part takes the next seed.
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
    """What a model may cost. The spend is kept with the cache of replies, and so over restarts.

    Args:
        tokens: The most prompt and reply tokens in all. By default there is no limit.
        money: The most that may be spent, in the currency of the prices. By default there is no limit.
        price_input: The price of a million prompt tokens.
        price_output: The price of a million reply tokens.
    """

    tokens: int | None = None
    money: float | None = None
    price_input: float = 0.0
    price_output: float = 0.0


@dataclass
class ModelConfig:
    """A model that answers requests.

    Args:
        kind: What the model is: "endpoint" (any server that speaks the OpenAI API) or "local" (a transformers model).
        model: The model's name at the endpoint, or the folder, hub name or `nano:NAME` of a local one.
        url: The endpoint's address, up to and with /v1.
        key_env: The environment variable that holds the endpoint's key; null is an endpoint without one.
        sampling: How replies are sampled.
        concurrency: The most requests in flight (local models work one by one).
        timeout: A request may take so many seconds.
        retries: A request is repeated so often after 429, 5xx, a time-out or a lost connection.
        budget: What it may cost.
        cache: The folder that keeps every reply. By default it is beside the output.
        device: Where a local model is: cpu, cuda, cuda:1 and so on.
        dtype: The type of a local model's weights: auto, float32, bfloat16 and so on.
    """

    KEY: ClassVar[str] = "model"
    """Where these settings stand in a configuration, for messages."""
    KINDS: ClassVar[tuple[str, ...]] = ("endpoint", "local")
    CACHE_ENDING: ClassVar[str] = ".replies"

    kind: str = "endpoint"
    model: str | None = None
    url: str | None = None
    key_env: str | None = "OPENAI_API_KEY"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    concurrency: int = 32
    timeout: float = 120.0
    retries: int = 6
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    cache: str | None = None
    device: str = "cpu"
    dtype: str = "auto"

    def check(self) -> None:
        """Raise ConfigurationError, naming the key, when a value cannot be used."""
        check_choice(self.kind, self.KINDS, f"{self.KEY}.kind")
        if self.kind in ModelConfig.KINDS and not self.model:
            raise ConfigurationError(f"{self.KEY}.model: kind {self.kind} needs a model")
        if self.kind == "endpoint":
            self._check_url()
        if not 0 < self.timeout < math.inf:
            raise ConfigurationError(f"{self.KEY}.timeout: {self.timeout} is no number of seconds above 0")
        sampling, budget = self.sampling, self.budget
        for key, value, low, high in (
            ("concurrency", self.concurrency, 1, math.inf),
            ("retries", self.retries, 0, math.inf),
            ("sampling.temperature", sampling.temperature, 0, 5),
            ("sampling.max_tokens", sampling.max_tokens, 1, math.inf),
            ("budget.tokens", budget.tokens, 0, MOST),
            ("budget.money", budget.money, 0, MOST),
            ("budget.price_input", budget.price_input, 0, MOST),
            ("budget.price_output", budget.price_output, 0, MOST),
        ):
            check_between(value, low, high, f"{self.KEY}.{key}")
        if not 0 < sampling.top_p <= 1:
            raise ConfigurationError(f"{self.KEY}.sampling.top_p: {sampling.top_p} is not above 0 and at most 1")
        if budget.money is not None and not budget.price_input and not budget.price_output:
            raise ConfigurationError(f"{self.KEY}.budget.money: needs {self.KEY}.budget.price_input and price_output")

    def content(self) -> dict[str, Any]:
        """The settings that decide what the replies are, for fingerprints."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in NOT_CONTENT}

    def cache_folder(self, output: Path) -> Path:
        return Path(self.cache) if self.cache is not None else output.with_name(output.name + self.CACHE_ENDING)

    def _check_url(self) -> None:
        key = f"{self.KEY}.url"
        if not self.url:
            raise ConfigurationError(f"{key}: kind endpoint needs an address, such as http://localhost:8000/v1")
        try:
            split = urlsplit(self.url)
        except ValueError:
            raise ConfigurationError(f"{key}: is no http or https address") from None
        if split.username is not None or split.password is not None or split.query:
            # Not repeated here: it may hold a secret.
            raise ConfigurationError(
                f"{key}: must hold no user name, password or query; name the key in {self.KEY}.key_env"
            )
        if split.scheme not in ("http", "https") or not split.hostname:
            raise ConfigurationError(f"{key}: {self.url!r} is no http or https address")
