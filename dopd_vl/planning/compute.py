"""The arithmetic of one step and the time that it takes at an assumed share of a GPU's stated throughput."""

import math
from dataclasses import dataclass

from dopd_vl.planning import activations as act
from dopd_vl.planning.shapes import ModelShape, VisionShape
from dopd_vl.planning.workload import Scoring, Workload


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
class Lengths:
    """Tokens of an average rollout."""

    prompt: float
    privileged: float
    response: float

    def of(self, scoring: Scoring) -> float:
        """The prompt of a policy's view."""
        if scoring.view == "plain":
            return self.prompt
        return self.privileged + (self.response if scoring.view == "sibling" else 0.0)


@dataclass(frozen=True)
class Part:
    """A part of a step, of one device."""

    name: str
    flops: float
    seconds: float
    reason: str


def time_of(work: Workload, machine: Machine, mean: Lengths) -> list[Part]:
    """The parts of one optimizer step. Communication between devices is not counted, nor verifiers and data loading.

    Args:
        mean: lengths of an average rollout; a step takes as long as its mean, where its memory is set by the longest.
    """
    rate = machine.tflops * 1e12 * machine.mfu
    parts = [_rollout(work, machine, mean)]
    for scoring in work.scorings:
        shape = work.student if scoring.policy != "teacher" else work.teacher
        assert shape is not None
        shared = scoring.shares_prompts and work.share_prompts
        flops = _pass_flops(work, shape, mean.of(scoring), mean.response, shared)
        reason = "a forward pass" + (", a prompt once for its siblings" if shared and work.group > 1 else "")
        parts.append(Part(f"scoring: {scoring}", flops, flops / rate, reason))
    forward = _pass_flops(work, work.student, mean.prompt, mean.response, work.learns_from_shared_prompts)
    # Backward: gradients of inputs and, unless frozen, of weights. Checkpointing repeats the layers' forward pass.
    times = 1 + (1 if work.lora_rank else 2) + (1 if work.checkpointing else 0)
    dense = 0.0  # what a term over the whole vocabulary projects once more
    for scoring in work.scorings:
        if scoring.keeps_hidden:
            shape = work.student if scoring.policy != "teacher" else work.teacher
            assert shape is not None
            dense += 2 * shape.head_parameters * work.rollouts * mean.response * work.hidden_share(scoring)
    flops = times * forward + dense
    parts.append(Part("learning", flops, flops / rate, f"{times} forward passes' worth"))
    return parts


def _pass_flops(work: Workload, shape: ModelShape, prompt: float, response: float, shared: bool) -> float:
    """A forward pass over all rollouts of a step, the head on response tokens alone."""
    prompts = math.ceil(work.rollouts / work.group) if shared else work.rollouts
    tokens = prompts * prompt + work.rollouts * response
    weights = 2 * shape.body_parameters * tokens + 2 * shape.head_parameters * work.rollouts * response
    # Causal attention: two products of 2 Q for every pair of a query and an earlier key, in every layer.
    pairs = prompts * prompt**2 / 2 + work.rollouts * (prompt * response + response**2 / 2)
    attention = 4 * shape.queries * shape.layers * pairs
    vision = 0.0
    if shape.vision is not None:
        images = math.ceil(work.rollouts / work.group) * work.images
        vision = images * _vision_flops(shape.vision, work.image_tokens)
    return weights + attention + vision


def _vision_flops(vision: VisionShape, image_tokens: int) -> float:
    patches = image_tokens * vision.merge**2
    return 2 * vision.parameters * patches + 4 * vision.hidden * vision.layers * patches**2


def _rollout(work: Workload, machine: Machine, mean: Lengths) -> Part:
    shape, rows = work.student, work.rollouts
    served = work.uses_vllm
    weight = 2 if served or work.precision == "bfloat16" else 4
    cache = act.cache_bytes(shape, "bfloat16" if served else work.precision)
    per_token = weight * (shape.body_parameters + shape.head_parameters)
    steps = work.response_tokens  # a batch rolls out until its longest rollout ends
    context = mean.prompt + mean.response / 2
    reads = steps * per_token + rows * mean.response * context * cache
    by_memory = reads / (machine.bandwidth_tb * 1e12 * machine.mbu)
    flops = 2 * (shape.body_parameters + shape.head_parameters) * rows * mean.response
    flops += _pass_flops(work, shape, mean.prompt, 0, served)
    by_compute = flops / (machine.tflops * 1e12 * machine.mfu)
    reason = f"{steps:,} tokens one after another, each reads the weights; " + ("vLLM" if served else "transformers")
    return Part("rollouts", flops, max(by_memory, by_compute), reason)
