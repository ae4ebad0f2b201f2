"""A plan on the terminal."""

from rich.console import Console
from rich.table import Table

from dopd_vl.common.terminal import show, tell
from dopd_vl.planning import activations as act
from dopd_vl.planning.advice import Change
from dopd_vl.planning.compute import Machine, Part
from dopd_vl.planning.lines import MOMENTS
from dopd_vl.planning.memory import Memory
from dopd_vl.planning.workload import Workload

_GB = 1e9
_VLLM_PASSES = 2e9  # assumed: what vLLM's passes and CUDA graphs hold beside weights, keys and values


def print_memory(console: Console, memory: Memory) -> None:
    """What is held at the worst moment, line by line, and the sum at every moment."""
    worst = memory.peak_moment
    table = Table(title=f"Memory of one GPU at its worst moment: {worst}", title_justify="left")
    table.add_column("held")
    table.add_column("GB", justify="right")
    table.add_column("why", overflow="fold")
    for line in sorted(memory.lines, key=lambda line: -line.bytes):
        if worst in line.moments:
            table.add_row(line.name, f"{line.bytes / _GB:.2f}", line.reason)
    table.add_section()
    table.add_row("peak", f"{memory.peak / _GB:.2f}", "")
    show(console, table)
    sums = Table(title="Every moment", title_justify="left")
    for moment in MOMENTS:
        sums.add_column(moment, justify="right")
    sums.add_row(*(f"{memory.at(moment) / _GB:.1f}" for moment in MOMENTS))
    show(console, sums)


def print_verdict(console: Console, memory: Memory, device_bytes: float, changes: list[Change]) -> None:
    """Whether it fits, and if not what to change."""
    have, need = device_bytes / _GB, memory.peak / _GB
    if memory.peak <= device_bytes:
        tell(console, f"It fits: {need:.1f} of {have:g} GB a GPU.")
        return
    tell(console, f"It does not fit: {need:.1f} GB are needed, a GPU has {have:g} GB.")
    table = Table(title="Change, in this order", title_justify="left")
    for name in ("setting", "saves GB", "then GB", "in return"):
        table.add_column(name, justify="right" if "GB" in name else "left", overflow="fold")
    for change in changes:
        table.add_row(change.settings, f"{change.saves / _GB:.1f}", f"{change.peak / _GB:.1f}", change.cost)
    if changes:
        show(console, table)
    if not changes or changes[-1].peak > device_bytes:
        tell(console, "No setting brings it below: it needs GPUs of more memory, or smaller models.")


def print_time(console: Console, work: Workload, parts: list[Part], steps: int) -> None:
    """Arithmetic and seconds of a step."""
    table = Table(title="Time of a step", title_justify="left")
    for name in ("part", "TFLOP a GPU", "seconds", "why"):
        table.add_column(name, justify="right" if name in ("TFLOP a GPU", "seconds") else "left", overflow="fold")
    for part in parts:
        table.add_row(part.name, f"{part.flops / 1e12:,.0f}", f"{part.seconds:.1f}", part.reason)
    total = sum(part.seconds for part in parts)
    table.add_section()
    table.add_row("step", f"{sum(part.flops for part in parts) / 1e12:,.0f}", f"{total:.1f}", "without communication")
    show(console, table)
    rollouts = work.rollouts * work.devices
    if steps < 0:
        tell(console, f"{rollouts} rollouts a step; how many steps num_train_epochs makes depends on the data")
        return
    hours = total * steps / 3600
    tell(console, f"{steps} steps of {rollouts} rollouts: {hours:.1f} hours, {hours * work.devices:.0f} GPU hours")


def print_assumptions(console: Console, work: Workload, machine: Machine, mean: Workload) -> None:
    """Everything that was not known and was assumed."""
    lines = [
        f"longest prompt {work.prompt_tokens} tokens, privileged {work.privileged_tokens}, response "
        f"{work.response_tokens}, and every rollout that long when memory is counted",
        f"average rollout {mean.prompt_tokens} + {mean.response_tokens} tokens, privileged {mean.privileged_tokens} + "
        f"{mean.response_tokens} (--mean_share)",
        f"{machine.tflops:g} TFLOPS dense bf16 a GPU at {machine.mfu:.0%} (--tflops, --mfu); {machine.bandwidth_tb:g} "
        f"TB/s at {machine.mbu:.0%} in rollouts (--bandwidth, --mbu)",
    ]
    if work.images:
        lines.append(f"images in a prompt: {work.images}, of {work.image_tokens} tokens (--images, --image_tokens)")
    if any(scoring.keeps_hidden and not scoring.of_all_tokens for scoring in work.scorings):
        lines.append(f"{work.full_share:.0%} of the tokens taught over the whole vocabulary (--full_share)")
    tell(console, "Assumed: " + "; ".join(lines) + ".")


def vllm_room(work: Workload, device_bytes: float) -> float:
    """Whole rollouts whose keys and values fit in vLLM's share at a time; below 1 vLLM refuses to start."""
    free = work.vllm_share * device_bytes - 2 * work.student.parameters - _VLLM_PASSES
    return free / (work.vllm_length * act.cache_bytes(work.student, "bfloat16"))
