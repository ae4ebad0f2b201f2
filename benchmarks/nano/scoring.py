"""How often a nano model answers right on held-out digits or problems, decoded greedily."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from dopd_vl.evaluation.accuracy import predict, summarise
from dopd_vl.nano.source import WORLDS, NanoSource
from dopd_vl.views import ViewProcessor, processor_for

MAX_RESPONSE = 64  # tokens; the longest reference response has about 40


def load(folder: Path) -> tuple[PreTrainedModel, ViewProcessor]:
    """A saved nano model and its views. The classes are found as for any model folder."""
    processing_class = AutoProcessor.from_pretrained(folder)
    auto = AutoModelForImageTextToText if isinstance(processing_class, ProcessorMixin) else AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    return model, processor_for(model.config, processing_class)


def heldout(world: str, size: int, seed: int = 0) -> NanoSource:
    return NanoSource({"world": world, "split": "heldout", "size": size, "seed": seed})


def accuracy(
    model: PreTrainedModel, views: ViewProcessor, examples: Sequence[Mapping[str, Any]], variant: str
) -> dict[str, float]:
    """The share of right answers, 0 to 1: "all", then each task kind by name."""
    predictions, refused = predict(model, views, examples, variant, max_new_tokens=MAX_RESPONSE, batch_size=60)
    if refused:
        raise ValueError(f"example {refused[0][0]!r} could not be shown in variant {variant!r}: {refused[0][1]}")
    summary = summarise(predictions)
    by_kind = {source.partition("/")[2]: share for source, share in summary.by_source.items()}
    return {name: round(share, 4) for name, share in {"all": summary.accuracy, **by_kind}.items()}


def score(model: PreTrainedModel, views: ViewProcessor, world: str, size: int) -> dict[str, dict[str, float]]:
    """Accuracy without privilege and with the world's default variant, on the first `size` held-out records."""
    examples = list(heldout(world, size))
    return {name: accuracy(model, views, examples, name) for name in ("none", WORLDS[world].default_variant)}
