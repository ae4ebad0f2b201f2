"""What a run takes beside its GPUs: main memory of a machine, disk, and what served teachers send."""

from typing import NamedTuple

from dopd_vl.planning.lines import ALWAYS, Line
from dopd_vl.planning.workload import ServedTeachers, Workload
from dopd_vl.training.teachers import TEACHER

_SENT_ENTRY = {"vllm": 73, "sglang": 34}  # bytes of JSON: {"12345":{"logprob":-1.2345678329467773,"rank":12, ...
_READ_ENTRY = 500  # of an answer: 73 as it is sent, and 420 while Python takes it apart; measured with Python 3.11
_PROCESS = 5_000_000_000  # assumed: Python, PyTorch, CUDA's libraries and the data of a training process


def host_lines(work: Workload) -> list[Line]:
    """Main memory of one machine, at most: as if each of its processes loaded its models whole at the same time."""
    processes = work.devices // work.machines
    teachers = work.teacher_bytes * sum(teacher.shape.parameters for teacher in work.teachers)
    models = (4 if work.quantization is None else 2) * work.student.parameters + teachers
    kind = "student and teachers" if len(work.teachers) > 1 else "student and teacher" if teachers else "student"
    width = "fp32" if work.quantization is None else "bf16"
    lines = [
        Line("processes", processes * _PROCESS, ALWAYS, f"assumed: {_PROCESS / 1e9:g} GB each"),
        Line("loading models", processes * models, ALWAYS, f"{width} {kind}, before they are on the GPUs"),
    ]
    if work.served is not None:
        answers = processes * _answers(work, work.served)
        reason = f"{_READ_ENTRY} bytes an entry, as many at a time as are asked for"
        lines.append(Line("served teachers' answers", answers, ALWAYS, reason))
    if any(scoring.policy == "start" for scoring in work.scorings) and not work.lora_rank:
        first = processes * 4 * work.trained
        lines.append(Line("the student's start weights", first, ALWAYS, "fp32, until training begins"))
    if work.offload_scores:
        scores = processes * _offloaded(work)
        lines.append(Line("scores and hidden states", scores, ALWAYS, "training.offload_scores"))
    return lines


def disk_lines(work: Workload) -> list[Line]:
    """The run folder at its fullest, while a checkpoint is written that another is to be removed for."""
    student = 4 * work.saved
    state = 12 * work.trained if work.parallel in ("zero2", "zero3") else work.moments_bytes * work.trained
    averages = sum(scoring.policy == "average" for scoring in work.scorings)
    limits = [limit for limit in (work.saves, work.save_total_limit + 1 if work.save_total_limit else None) if limit]
    kept = min(limits, default=1)
    each = "" if limits else ", each of which is kept"
    what = "adapters" if work.lora_rank else "weights"
    checkpoint = student + state + averages * 4 * work.trained
    lines = [
        Line(f"{kept} checkpoints", kept * checkpoint, ALWAYS, f"fp32 {what} and the optimizer's state{each}"),
        Line("student/", student, ALWAYS, f"fp32 {what}"),
    ]
    if work.eval_batch:
        lines.append(Line("best/", 2 * student, ALWAYS, "twice while a better one takes its place"))
    return lines


class Network(NamedTuple):
    """Bytes of a step, of all processes together."""

    answers: int
    images: int
    """sent to the servers, at most: as PNG, which is no larger than its pixels, and base64"""


def network_of(work: Workload, served: ServedTeachers) -> Network:
    """What a step exchanges with served teachers, as if they taught every rollout.

    vLLM answers for the prompt's tokens as well as the response's; SGLang is asked for the response's, where no images
    stand in the prompt.
    """
    rollouts = work.rollouts * work.devices
    answers = images = 0
    for scoring in work.scorings:
        if scoring.policy == TEACHER:
            prompt = 0 if served.sglang and not work.images else work.view_tokens(scoring)
            answers += rollouts * (prompt + work.response_tokens)
            images += rollouts * work.images * work.image_tokens_of(scoring)
    sent = answers * served.top_k * _SENT_ENTRY["sglang" if served.sglang else "vllm"]
    pixels = images * (0 if work.student.vision is None else work.student.vision.pixels_a_token)
    return Network(sent, pixels * 3 * 4 // 3)


def _offloaded(work: Workload) -> int:
    """Of one process: Top-K entries and hidden states of a step."""
    tokens = work.rollouts * work.response_tokens
    entries = sum(8 * work.entries(scoring) for scoring in work.scorings if scoring.supervises)
    hidden = sum(
        4 * max((shape.hidden for _, shape in work.models_of(scoring)), default=0)
        for scoring in work.scorings
        if scoring.keeps_hidden
    )
    return tokens * (entries + hidden)


def _answers(work: Workload, served: ServedTeachers) -> int:
    """Of one process: all that are in flight, read and taken apart."""
    asked = [scoring for scoring in work.scorings if scoring.policy == TEACHER]
    at_once = min(served.concurrency * len(served.addresses), work.rollouts * len(asked))
    longest = max((work.view_tokens(scoring) for scoring in asked), default=0) + work.response_tokens
    return at_once * longest * served.top_k * _READ_ENTRY
