"""What a run takes beside its GPUs: main memory of a machine, and disk."""

from dopd_vl.planning.lines import ALWAYS, Line
from dopd_vl.planning.workload import Workload

_PROCESS = 5_000_000_000  # assumed: Python, PyTorch, CUDA's libraries and the data of a training process


def host_lines(work: Workload) -> list[Line]:
    """Main memory of one machine, at most: as if each of its processes loaded its models whole at the same time."""
    processes = work.devices // work.machines
    models = 4 * work.student.parameters + (work.teacher_bytes * work.teacher.parameters if work.teacher else 0)
    lines = [
        Line("processes", processes * _PROCESS, ALWAYS, f"assumed: {_PROCESS / 1e9:g} GB each"),
        Line("loading models", processes * models, ALWAYS, "fp32 student and teacher, before they are on the GPUs"),
    ]
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
    state = 12 * work.trained if work.parallel in ("zero2", "zero3") else work.optimizer_bytes * work.trained
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


def _offloaded(work: Workload) -> int:
    """Of one process: Top-K entries and hidden states of a step."""
    tokens = work.rollouts * work.response_tokens
    entries = sum(8 * work.top_k for scoring in work.scorings if scoring.supervises)
    hidden = sum(4 * work.model_of(scoring).hidden for scoring in work.scorings if scoring.keeps_hidden)
    return tokens * (entries + hidden)
