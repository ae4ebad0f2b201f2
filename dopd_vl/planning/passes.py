"""Bytes of the passes of a step: rollouts, scoring, what is kept of it, and learning; and those of an evaluation."""

import math
from collections.abc import Iterator

from dopd_vl.core.fused_loss import DENSE_DIVISOR
from dopd_vl.core.passes import TOP_K_BLOCK
from dopd_vl.planning import activations as act
from dopd_vl.planning.lines import ALWAYS, Line
from dopd_vl.planning.shapes import ModelShape
from dopd_vl.planning.workload import Precision, Scoring, Workload
from dopd_vl.training.teachers import TEACHER

_SAMPLING_COPIES = 4  # of the next token's logits: the head's, in fp32, by temperature, as probabilities


def lines(work: Workload) -> Iterator[Line]:
    """Everything that comes and goes with the passes."""
    if not work.uses_vllm:
        yield from _rollout(work)
    if work.eval_batch:
        yield from _evaluation(work)
    yield from _scoring(work)
    yield from _kept(work)
    yield from _learning(work)
    yield from _loss(work)


def _rollout(work: Workload) -> Iterator[Line]:
    rows, together = work.rollouts, "all rollouts of the step at once"
    tokens = work.prompt_tokens + work.response_tokens
    yield Line("reading the prompts", _reading(work, rows, work.prompt_tokens), frozenset({"prefill"}), together)
    yield Line("rollouts' keys and values", _grown_cache(work, rows, tokens), frozenset({"rollout"}), together)
    reason = f"fp32, {_SAMPLING_COPIES} copies of a row each"
    yield Line("next tokens' logits", _next_logits(work, rows), frozenset({"rollout"}), reason)


def _evaluation(work: Workload) -> Iterator[Line]:
    """Greedy responses by transformers, whatever rolls out, and their scores in one pass; the worst of its moments."""
    rows, prompt = work.eval_batch, work.eval_prompt_tokens
    tokens = prompt + work.eval_response_tokens
    generating = _grown_cache(work, rows, tokens) + _next_logits(work, rows)
    passing = rows * tokens * act.passing(work.student, work.precision)
    scoring = passing + rows * tokens**2 * (1 + act.saved_mask(work.precision))
    most = max(_reading(work, rows, prompt), generating, scoring)
    reason = (
        f"{rows} responses at a time; the largest of prompts, their last tokens' cache and logits, and their scores"
    )
    yield Line("evaluation", most, frozenset({"evaluation"}), reason)


def _reading(work: Workload, rows: int, prompt: int) -> int:
    """Prompts on their way into the cache."""
    shape, precision = work.student, work.precision
    held = prompt * (act.passing(shape, precision) + act.cache_bytes(shape, precision))
    held += prompt**2 * (1 + act.saved_mask(precision))
    return rows * max(held, _looking(work.images * work.image_tokens, shape, precision))


def _looking(image_tokens: int, shape: ModelShape, precision: Precision) -> int:
    """The vision tower over the images of one prompt, without a gradient."""
    if shape.vision is None:
        return 0
    patches = image_tokens * shape.vision.merge**2
    return patches * act.passing_vision(shape.vision, precision)


def _grown_cache(work: Workload, rows: int, tokens: int) -> int:
    """Keys and values: a layer's are copied as they grow, so that one layer's are there twice."""
    shape, layers = work.student, max(1, work.student.attention_layers)
    grown = act.cache_bytes(shape, work.precision) * (layers + 1) // layers
    return rows * (tokens * grown + act.state_bytes(shape))


def _next_logits(work: Workload, rows: int) -> int:
    return _SAMPLING_COPIES * 4 * rows * work.student.vocabulary


def _scoring(work: Workload) -> Iterator[Line]:
    passes = {
        name: _scoring_pass(work, scoring, shape)
        for scoring in work.scorings
        for name, shape in work.models_of(scoring)
    }
    if passes:
        worst = max(passes, key=lambda name: passes[name])
        reason = f"of {worst}, {_scored_rows(work)} rollouts at a time; the larger of pass and logits"
        yield Line("scoring pass", passes[worst], frozenset({"scoring"}), reason)
    for scoring in work.scorings:
        if not work.offload_scores:
            hidden = work.rollouts * work.response_tokens * _hidden_bytes(work, scoring)
            yield Line(f"hidden states of {scoring}", hidden, frozenset({"scoring"}), "until all have scored")
        # Of several teachers those of each stay until they have been put together.
        copies = 2 if scoring.policy == TEACHER and work.has_several_teachers else 1
        reason = f"{_a_token(work, scoring)} bytes a token" + (", by teacher and together" if copies > 1 else "")
        scores = copies * work.rollouts * _score_bytes(work, scoring)
        yield Line(f"scores of {scoring}", scores, frozenset({"scoring"}), reason)


def _scoring_pass(work: Workload, scoring: Scoring, shape: ModelShape) -> int:
    precision = _precision(work, scoring)
    rows, prompt, response = _scored_rows(work), work.view_tokens(scoring), work.response_tokens
    pair = 1 + act.saved_mask(precision)
    shared = work.shares_prompts(scoring, shape)
    prompts = math.ceil(rows / work.group) if shared else rows
    if shared:
        cache = rows * (prompt + response) * act.cache_bytes(shape, precision)
        running = max(prompts * prompt, rows * response) * act.passing(shape, precision)
        held = cache + running + max(prompts * prompt**2, rows * response * (prompt + response)) * pair
    else:
        tokens = prompt + response
        held = rows * tokens * act.passing(shape, precision) + rows * tokens**2 * pair
    vision = prompts * _looking(work.images * work.image_tokens_of(scoring), shape, precision)
    hidden = rows * response * shape.hidden * act.WIDTHS[precision].stream
    return max(held, vision, hidden + _scored_chunk(work, shape, precision))


def _scored_chunk(work: Workload, shape: ModelShape, precision: Precision) -> int:
    """One chunk of logits on its way to scores."""
    logits = 4 * work.chunk * shape.vocabulary
    # In two stages: the candidates' values, where blocks do not make up the vocabulary with the rest's.
    blocks, rest = divmod(shape.vocabulary, TOP_K_BLOCK)
    copies = 2 if rest else 1
    candidates = work.chunk * work.top_k * TOP_K_BLOCK * 4 * copies if blocks >= 8 * work.top_k else 0
    return logits + candidates + _head_copy(shape, precision)


def _head_copy(shape: ModelShape, precision: Precision) -> int:
    """Autocast's products take the head in bf16."""
    return 2 * shape.head_parameters if precision == "autocast" else 0


def _kept(work: Workload) -> Iterator[Line]:
    """Of one step until the next has been scored."""
    for scoring in work.scorings:
        if scoring.supervises:
            place = "; the entries in host memory" if work.offload_scores else ""
            reason = f"{_a_token(work, scoring)} bytes a token, until the next step has been scored{place}"
            yield Line(f"kept scores of {scoring}", work.rollouts * _score_bytes(work, scoring), ALWAYS, reason)
        if scoring.keeps_hidden and not work.offload_scores:
            share = work.hidden_share(scoring)
            tokens = int(share * work.rollouts * work.response_tokens)
            size = tokens * _hidden_bytes(work, scoring)
            reason = f"of {share:.0%} of the tokens, for terms over the whole vocabulary"
            yield Line(f"kept hidden states of {scoring}", size, ALWAYS, reason)


def _a_token(work: Workload, scoring: Scoring) -> int:
    return 20 if work.offload_scores else 8 * work.entries(scoring) + 20


def _score_bytes(work: Workload, scoring: Scoring) -> int:
    """Of one rollout, on the device."""
    return work.response_tokens * _a_token(work, scoring)


def _hidden_bytes(work: Workload, scoring: Scoring) -> int:
    """Of a token; of several teachers, which share the rollouts, the widest one's. Of a served one there are none."""
    widest = max((shape.hidden for _, shape in work.models_of(scoring)), default=0)
    return widest * act.WIDTHS[_precision(work, scoring)].stream


def _learning(work: Workload) -> Iterator[Line]:
    shape, precision, response = work.student, work.precision, work.response_tokens
    whole = work.prompt_tokens + response
    prompts = work.batch
    if work.learns_from_shared_prompts:
        prompts = math.ceil(work.batch / work.group)
        tokens = prompts * work.prompt_tokens + work.batch * response
        keys = prompts * work.prompt_tokens + work.batch * whole
        pairs = prompts * work.prompt_tokens**2 + work.batch * response * whole
        cache = work.batch * whole * act.cache_bytes(shape, precision)
        yield Line("prompts' keys and values", cache, frozenset({"forward"}), "which siblings go on from")
    else:
        tokens = keys = work.batch * whole
        pairs = work.batch * whole**2
    layer = tokens * act.saved_by_layer(shape, precision, work.lora_rank)
    layer += keys * act.saved_keys(shape, precision) + pairs * act.saved_mask(precision)
    in_flight = tokens * act.backward_temporaries(shape, precision)
    ends = frozenset({"forward", "loss", "backward starts"})
    if work.checkpointing:
        inputs = tokens * act.layer_inputs(shape, precision)
        yield Line("activations", inputs, ends, "checkpointing: the inputs of the layers alone")
        passing = tokens * act.passing(shape, precision) + pairs * act.saved_mask(precision)
        yield Line("a layer in passing", passing, frozenset({"forward"}), "its results are not kept")
    else:
        yield Line("activations", shape.layers * layer, ends, f"{layer // tokens:,} bytes a token and layer")
    backward = frozenset({"backward starts", "backward ends"}) if work.checkpointing else frozenset({"backward ends"})
    yield Line("a layer in its backward pass", layer + in_flight, backward, "its activations and gradients in flight")
    norm = tokens * act.final_norm(shape, precision) + pairs
    yield Line("last norm and mask", norm, ends, "whole sequences, and one byte a pair of tokens")
    if shape.vision is not None and not {"vision", "projector"} <= set(work.frozen):
        patches = prompts * work.images * work.image_tokens * shape.vision.merge**2
        frozen = "vision" in work.frozen
        vision = patches * act.saved_by_vision(shape.vision, precision, work.checkpointing, frozen)
        yield Line("vision tower's activations", vision, ends, f"of {prompts * work.images} images")


def _loss(work: Workload) -> Iterator[Line]:
    shape, head = work.student, 4 * work.student.head_parameters
    if work.language_learns:
        when = frozenset({"loss", "backward starts"})
        yield Line("head's gradient", head, when, "fp32, added up over the chunks")
        if shape.tied:
            copies = 2 if work.accumulation > 1 else 1
            reason = "head and embedding are one: their gradients are added at the end"
            yield Line("embedding's gradient", copies * head, frozenset({"backward ends"}), reason)
    hidden = work.batch * work.response_tokens * shape.hidden * act.WIDTHS[work.precision].stream
    when = frozenset({"loss", "backward starts"})
    yield Line("hidden states' gradient", hidden, when, "of the response's tokens")
    for scoring in work.scorings:
        if scoring.keeps_hidden:
            size = 2 * work.batch * work.response_tokens * _hidden_bytes(work, scoring)
            yield Line(f"hidden states of {scoring}, laid out", size, frozenset({"loss"}), "twice, a slice")
    # Logits, of a term of full support the target's, too, on fewer rows; the gradient, unless it takes their place.
    gradient = 0 if work.precision == "float32" else 2
    sparse = 4 + gradient
    dense = (8 + gradient) / DENSE_DIVISOR if work.full_support else 0
    logits = int(max(sparse, dense) * work.chunk * shape.vocabulary)
    copy = _head_copy(shape, work.precision)
    yield Line(
        "a chunk of logits", logits + copy, frozenset({"loss"}), f"{work.chunk} rows in fp32, and their gradient"
    )


def _scored_rows(work: Workload) -> int:
    return min(work.scoring_batch, work.rollouts)


def _precision(work: Workload, scoring: Scoring) -> Precision:
    # A bf16 teacher computes in bf16 throughout; an fp32 one as the student does.
    of_its_own = scoring.policy == TEACHER and work.teacher_bytes != 4
    return "bfloat16" if of_its_own else work.precision
