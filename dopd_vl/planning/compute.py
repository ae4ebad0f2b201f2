"""The arithmetic of one step and the time that it takes at an assumed share of a GPU's stated throughput."""

import math
from dataclasses import dataclass

from dopd_vl.planning import activations as act
from dopd_vl.planning.shapes import ModelShape, VisionShape
from dopd_vl.planning.workload import Workload


@dataclass(frozen=True)
class Machine:
    """What a device does, by its data sheet, and which share of it a run is assumed to reach."""

    tflops: float
    bandwidth_tb: float
    mfu: float
    """share of the throughput in passes over whole sequences"""
    mbu: float
    """share of the memory's bandwidth in rollouts, which read all weights for every token"""


@dataclass(frozen=True)
class Part:
    """A part of a step, of one device."""

    name: str
    flops: float
    seconds: float
    reason: str


def time_of(work: Workload, machine: Machine, mean: Workload) -> list[Part]:
    """The parts of one optimizer step. Communication between devices is not counted, nor verifiers and data loading.

    Args:
        mean: the same run with the lengths of an average rollout (`Workload.of_mean_length`): a step takes as long as
            its mean, where its memory is set by the longest.
    """
    rate = machine.tflops * 1e12 * machine.mfu
    parts = [_rollout(work, machine, mean)]
    for scoring in work.scorings:
        share = work.share_of_a_model(scoring)
        for name, shape in work.models_of(scoring):
            shared = work.shares_prompts(scoring, shape)
            tokens, images = mean.view_tokens(scoring), work.image_tokens_of(scoring)
            flops = share * _pass_flops(work, shape, tokens, mean.response_tokens, shared, images)
            reason = "a forward pass" + (", a prompt once for its siblings" if shared else "")
            reason += f", of {share:.0%} of the rollouts" if share < 1 else ""
            parts.append(Part(f"scoring: {name}", flops, flops / rate, reason))
    forward = _pass_flops(work, work.student, mean.prompt_tokens, mean.response_tokens, work.learns_from_shared_prompts)
    # Backward: gradients of inputs and, unless frozen, of weights. Checkpointing repeats the layers' forward pass.
    times = 1 + (2 if work.language_learns else 1) + (1 if work.checkpointing else 0)
    dense = 0.0  # what a term over the whole vocabulary projects once more
    for scoring in work.scorings:
        if scoring.keeps_hidden:
            taught = work.rollouts * mean.response_tokens * work.hidden_share(scoring) * work.share_of_a_model(scoring)
            dense += 2 * taught * sum(shape.head_parameters for _, shape in work.models_of(scoring))
    flops = times * forward + dense
    parts.append(Part("learning", flops, flops / rate, f"{times} forward passes' worth"))
    return parts


def _pass_flops(
    work: Workload, shape: ModelShape, prompt: float, response: float, shared: bool, image_tokens: int | None = None
) -> float:
    """A forward pass over all rollouts of a step, the head on response tokens alone; images as the student sees them,
    unless told otherwise."""
    prompts = math.ceil(work.rollouts / work.group) if shared else work.rollouts
    tokens = prompts * prompt + work.rollouts * response
    weights = 2 * shape.active_parameters * tokens + 2 * shape.head_parameters * work.rollouts * response
    # Causal attention: two products of 2 Q for every pair of a query and an earlier key, in every layer.
    pairs = prompts * prompt**2 / 2 + work.rollouts * (prompt * response + response**2 / 2)
    attention = 4 * shape.queries * shape.attention_layers * pairs
    vision = 0.0
    if shape.vision is not None:
        images = math.ceil(work.rollouts / work.group) * work.images
        vision = images * _vision_flops(shape.vision, work.image_tokens if image_tokens is None else image_tokens)
    return weights + attention + vision


def _vision_flops(vision: VisionShape, image_tokens: int) -> float:
    patches = image_tokens * vision.merge**2
    return 2 * vision.parameters * patches + 4 * vision.hidden * vision.layers * patches**2


def _rollout(work: Workload, machine: Machine, mean: Workload) -> Part:
    shape, rows = work.student, work.rollouts
    served = work.uses_vllm
    weight = 4 if work.precision == "float32" and not served else 2
    cache = act.cache_bytes(shape, "bfloat16" if served else work.precision)
    # Of a mixture, a batch reads the experts that any of its rollouts chooses.
    read = min(shape.body_parameters, rows * shape.active_parameters)
    per_token = weight * (read + shape.head_parameters)
    steps = work.response_tokens  # a batch rolls out until its longest rollout ends
    context = mean.prompt_tokens + mean.response_tokens / 2
    cast = 6 * (shape.body_parameters + shape.head_parameters) if work.precision == "autocast" and not served else 0
    reads = cast + steps * per_token + rows * mean.response_tokens * context * cache
    by_memory = reads / (machine.bandwidth_tb * 1e12 * machine.mbu)
    flops = 2.0 * (shape.active_parameters + shape.head_parameters) * rows * mean.response_tokens
    flops += _pass_flops(work, shape, mean.prompt_tokens, 0, served)
    by_compute = flops / (machine.tflops * 1e12 * machine.mfu)
    reason = f"{steps:,} tokens one after another, each reads the weights; " + ("vLLM" if served else "transformers")
    return Part("rollouts", flops, max(by_memory, by_compute), reason)
