"""The nano tokenizer and processor: Qwen's classes, pre-tokenisation, control tokens and template, a small vocabulary.

Both families share one tokenizer. Its vocabulary is well above the Top-K of the objectives (128), so that Top-K and
full-vocabulary supervision differ as they do on a real model.
"""

import copy
import json
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from dopd_vl.nano.scenes import EMPTY
from dopd_vl.nano.source import WORLDS, NanoSource
from privileged import VARIANTS
from privileged.schema import IMAGE_MARKER

VOCAB_SIZE = 640
MAX_LENGTH = 1024  # tokens of prompt and response
PATCH_SIZE = 8
MERGE_SIZE = 2
MERGED = (PATCH_SIZE * MERGE_SIZE) ** 2  # pixels that become one token
MAX_IMAGE_TOKENS = 64

# In the order of Qwen's own vocabulary, where they too come after the byte-pair entries.
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen3-VL's template without its tool calls; unknown switches such as enable_thinking are accepted and change nothing.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if 'image' in part or 'image_url' in part or part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'video' in part or part.type == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


LEARNT_FROM = (
    *("none", "final_answer", "hints", "hints_executed", "hint_summary", "caption", "wrong_hint"),
    *("box_label", "box_caption", "box_only", "box_drawn", "evidence_crop", "degraded"),
)
"""Variants, one text each in which a record can be shown; more of them would change the shipped models' vocabulary."""


def corpus(records: int, seed: int) -> Iterator[str]:
    """Prompts in every variant and reference responses, of both worlds' train splits."""
    for world in WORLDS:
        source = NanoSource({"world": world, "split": "train", "size": records, "seed": seed})
        for index in range(records):
            record, response = source.record_and_response(index)
            for variant in (VARIANTS[name] for name in VARIANTS if name in LEARNT_FROM):
                if variant.missing(record) is None:
                    for message in variant.render(record).messages:
                        yield f"{message['role']}\n{message['content'].replace(IMAGE_MARKER, '')}"
                    yield f"assistant\n{response}"


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer: 256 bytes, merges learnt from `texts`, then control tokens; ids are contiguous."""
    learner = Tokenizer(models.BPE())
    frame = Qwen2Tokenizer().backend_tokenizer  # lends its normaliser and pre-tokenisation
    learner.normalizer, learner.pre_tokenizer = frame.normalizer, frame.pre_tokenizer
    size = vocab_size - len(CONTROL_TOKENS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    if len(learned["vocab"]) != size:
        raise ValueError(f"the corpus gave {len(learned['vocab'])} vocabulary entries, not {size}: use more texts")
    vocab = {**learned["vocab"], **{token: size + place for place, token in enumerate(CONTROL_TOKENS)}}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[tuple(merge) for merge in learned["merges"]],  # type: ignore[misc]
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,  # type: ignore[arg-type]
        extra_special_tokens=list(CONTROL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        padding_side="left",
    )
    tokenizer.add_tokens(EMPTY)  # never merged with its like, so that a transcript has one token for each cell
    return tokenizer


def nano_processor(tokenizer: Qwen2Tokenizer) -> Qwen3VLProcessor:
    """The vision family's processor: patches of 8 pixels, so that a 48 x 48 scene is 9 tokens at its own size."""
    patches: dict[str, Any] = {"patch_size": PATCH_SIZE, "merge_size": MERGE_SIZE, "temporal_patch_size": 2}
    normalisation: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    pixels: dict[str, Any] = {"shortest_edge": MERGED, "longest_edge": MAX_IMAGE_TOKENS * MERGED}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, **patches, **normalisation),
        tokenizer=copy.deepcopy(tokenizer),  # a processor leaves its mark on the tokenizer that it saves
        video_processor=Qwen3VLVideoProcessor(size=pixels, **patches, **normalisation),
        chat_template=CHAT_TEMPLATE,
    )
