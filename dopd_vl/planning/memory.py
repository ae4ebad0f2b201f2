"""The memory of one step on one device: a pure function from a workload to lines of bytes, each with its reason.

What is held when follows `dopd_vl/training/trainer.py` and `dopd_vl/core`: rollouts, then scoring of the whole step by
each policy, then slice by slice a forward pass into the fused loss and a backward pass, then the optimizer. Between
steps, where it is asked for, an evaluation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dopd_vl.planning import activations as act
from dopd_vl.planning import passes
from dopd_vl.planning.lines import ALWAYS, LEARNING, MOMENTS, PASSES, Line
from dopd_vl.planning.shapes import ModelShape
from dopd_vl.planning.workload import Workload
from dopd_vl.training.teachers import TEACHER

_CONTEXT = 1_000_000_000  # CUDA's context, cuBLAS and NCCL buffers
_FRAGMENTATION = 0.05  # of all else, between the allocator's blocks
_VLLM_PASSES = 2_000_000_000  # assumed: what vLLM's passes and CUDA graphs hold beside weights, keys and values
_BUCKET = 500_000_000  # values of DeepSpeed's default reduction bucket


@dataclass(frozen=True)
class Memory:
    """The lines of one device, and what they come to at each moment."""

    lines: tuple[Line, ...]

    def at(self, moment: str) -> int:
        """Bytes held at one of `MOMENTS`."""
        return sum(line.bytes for line in self.lines if moment in line.moments)

    @property
    def peak_moment(self) -> str:
        return max(MOMENTS, key=self.at)

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return self.at(self.peak_moment)


def memory_of(work: Workload, device_bytes: int | None = None) -> Memory:
    """What one device holds.

    Args:
        device_bytes: its memory, of which vLLM takes its share; without vLLM it does not matter.

    Raises:
        ValueError: vLLM's share of an unknown memory.
    """
    lines = [*_weights(work), *_learning_state(work), *passes.lines(work)]
    lines += [*_machine(work, lines), *_vllm(work, device_bytes)]
    return Memory(tuple(line for line in lines if line.bytes > 0))


def vllm_room(work: Workload, device_bytes: int) -> float:
    """Whole rollouts whose keys and values fit in vLLM's share at a time; below 1 vLLM refuses to start."""
    free = work.vllm_share * device_bytes - 2 * work.student.parameters - _VLLM_PASSES
    one = work.vllm_length * act.cache_bytes(work.student, "bfloat16") + act.state_bytes(work.student)
    return free / max(1, one)


def fits(work: Workload, device_bytes: int) -> bool:
    """Whether the peak is within a device's memory, and one rollout within vLLM's share, where it has one."""
    room = not work.vllm_share or vllm_room(work, device_bytes) >= 1
    return room and memory_of(work, device_bytes).peak <= device_bytes


def _weights(work: Workload) -> Iterator[Line]:
    student = work.student.parameters
    passes_here = PASSES - frozenset({"prefill", "rollout"}) if work.uses_vllm else PASSES
    generating = passes_here & {"prefill", "rollout", "evaluation"}
    if work.quantization is not None:
        kind = f"{work.quantization}, the rest in bf16"
        yield Line("student's weights", work.student.weight_bytes(2, work.quantization), ALWAYS, kind)
        yield Line("adapters", work.trained_bytes * work.trained, ALWAYS, "bf16")
    elif work.precision == "float32":
        yield Line("student's weights", 4 * student, ALWAYS, "fp32")
    elif work.precision == "autocast":
        yield Line("student's weights", 4 * student, ALWAYS, "fp32, whole on every GPU")
        # A trained weight's copy is kept until the outermost autocast ends; a frozen one's until its layer has run.
        kept = work.student.layer_parameters if work.lora_rank else max(work.trained, work.student.layer_parameters)
        yield Line(
            "bf16 copies of the student's weights", 2 * kept, passes_here - generating, "autocast's cache during a pass"
        )
        yield Line("bf16 copies to generate with", 2 * student, generating, "cast once, not for every token")
        saved = work.student.body_parameters if work.lora_rank and not work.checkpointing else 0
        yield Line(
            "bf16 copies of frozen weights",
            2 * saved,
            frozenset({"forward", "loss", "backward starts"}),
            "saved for the backward",
        )
    elif work.parallel == "zero2":
        yield Line("student's weights", 2 * student, ALWAYS, "bf16, whole on every GPU")
    elif work.parallel == "zero3":
        yield Line("student's weights", 2 * student // work.shards, ALWAYS, "bf16, a shard")
    else:
        yield Line("student's weights", 4 * student // work.shards, ALWAYS, "fp32, a shard")
    if work.gathers_to_generate:
        yield Line("weights gathered to generate", 2 * student, generating, "bf16, all of them")
        gathered = 2 * (2 * work.student.layer_parameters + work.student.head_parameters)
        reason = "bf16: one layer, the next one, and embedding or head"
        moments = (passes_here | {"backward starts", "backward ends"}) - generating
        yield Line("weights gathered for a pass", gathered, moments, reason)
    yield from _teachers(work)
    yield from _dequantised(work)
    for policy in sorted({scoring.policy for scoring in work.scorings} & {"start", "average"}):
        copies = 0 if policy == "start" and work.lora_rank else 4 * work.trained // work.shards
        yield Line(f"the student's {policy} weights", copies, ALWAYS, "fp32, of what is trained")


def _teachers(work: Workload) -> Iterator[Line]:
    size, parts = work.teacher_bytes, work.teacher_shards
    plain = {2: "bf16", 4: "fp32"}[size]
    for teacher in work.teachers:
        kind = plain if teacher.quantization is None else f"{teacher.quantization}, the rest in {plain}"
        held = teacher.shape.weight_bytes(size, teacher.quantization) // parts
        yield Line(f"{teacher}'s weights", held, ALWAYS, kind + (", a shard" if parts > 1 else ", whole"))
    if parts > 1 and work.teachers:
        gathered = size * max(_gathered(teacher.shape) for teacher in work.teachers)
        reason = "one layer, the next one, embedding and head" + ("; of the largest" if len(work.teachers) > 1 else "")
        yield Line("teacher's weights gathered to score", gathered, frozenset({"scoring"}), reason)
        if any(scoring.policy == TEACHER and scoring.keeps_hidden for scoring in work.scorings):
            heads = size * sum(teacher.shape.head_parameters for teacher in work.teachers)
            reason = "for terms over the whole vocabulary"
            yield Line("teacher's head gathered", heads, frozenset({"loss"}), reason)


def _gathered(teacher: ModelShape) -> int:
    return 2 * teacher.layer_parameters + teacher.head_parameters * (1 if teacher.tied else 2)


def _dequantised(work: Workload) -> Iterator[Line]:
    """Of 4 bits, the widest linear layer as its product takes it."""
    widest = [2 * teacher.shape.widest_linear for teacher in work.teachers if teacher.quantization == "4bit"]
    if work.quantization == "4bit":
        passes_here = PASSES | {"backward starts", "backward ends"}
        yield Line("a layer's weights dequantised", 2 * work.student.widest_linear, passes_here, "bf16")
    yield Line("a teacher's weights dequantised", max(widest, default=0), frozenset({"scoring"}), "bf16, a layer's")


def _learning_state(work: Workload) -> Iterator[Line]:
    trained, shards = work.trained, work.shards
    if work.parallel in ("zero2", "zero3"):
        yield Line("optimizer state", 12 * trained // shards, ALWAYS, "fp32 weights and AdamW's two moments, a shard")
        yield Line("gradients", 2 * trained // shards, LEARNING, "bf16, a shard; none between optimizer steps")
        yield Line(
            "reduction bucket", 2 * min(_BUCKET, trained), frozenset({"backward ends"}), "bf16, 5e8 values at most"
        )
        yield Line("gradients in fp32", 4 * trained // shards, frozenset({"update"}), "for the optimizer's step")
        return
    reason = "AdamW's two moments" + {8: " in fp32", 4: " in bf16", 2: " in 8 bits"}[work.moments_bytes]
    yield Line("optimizer state", work.moments_bytes * trained // shards, ALWAYS, reason)
    # Freed after each optimizer step; within a step they are there from the first slice's backward pass on.
    when = LEARNING if work.accumulation > 1 else frozenset({"backward ends", "update"})
    kind = {4: "fp32", 2: "bf16"}[work.trained_bytes]
    yield Line("gradients", work.trained_bytes * trained // shards, when, f"{kind}; none between optimizer steps")
    if work.parallel == "ddp":
        buckets = work.trained_bytes * trained
        yield Line("reduction buckets", buckets, ALWAYS, "DDP keeps a second copy of the gradients")
    if work.parallel == "fsdp2":
        unsharded = 4 * (work.student.layer_parameters + work.student.head_parameters)
        yield Line("gradients before reduction", unsharded, frozenset({"backward ends"}), "of one layer and the head")


def _vllm(work: Workload, device_bytes: int | None) -> Iterator[Line]:
    if not work.vllm_share:
        return
    if device_bytes is None:
        raise ValueError("vLLM takes a share of the device's memory, which is not given")
    moments = frozenset({"prefill", "rollout"}) if work.vllm_sleeps else ALWAYS
    reason = "its share: bf16 weights, and keys and values in what is left"
    yield Line("vLLM", int(work.vllm_share * device_bytes), moments, reason)


def _machine(work: Workload, lines: list[Line]) -> Iterator[Line]:
    if not work.on_gpu:
        return
    yield Line("CUDA and NCCL", _CONTEXT, ALWAYS, "assumed: 1 GB")
    peak = max(sum(line.bytes for line in lines if moment in line.moments) for moment in MOMENTS)
    yield Line("fragmentation", int(_FRAGMENTATION * peak), ALWAYS, f"assumed: {_FRAGMENTATION:.0%} of the rest")
