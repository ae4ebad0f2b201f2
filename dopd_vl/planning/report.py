"""A plan on the terminal."""

from rich.console import Console

from dopd_vl.common.terminal import show_table, tell
from dopd_vl.planning.advice import Change
from dopd_vl.planning.compute import Machine, Part
from dopd_vl.planning.host import disk_lines, host_lines, network_of
from dopd_vl.planning.lines import MOMENTS
from dopd_vl.planning.memory import Memory, fits, vllm_room
from dopd_vl.planning.shapes import COUNTED
from dopd_vl.planning.workload import Workload

_GB = 1e9
CLOSE = 0.15
"""Within which predictions were of what was measured."""


def print_memory(console: Console, memory: Memory) -> None:
    """What is held at the worst moment, line by line, and the sum at every moment."""
    worst = memory.peak_moment
    lines = sorted((line for line in memory.lines if worst in line.moments), key=lambda line: -line.bytes)
    rows = [(line.name, f"{line.bytes / _GB:.2f}", line.reason) for line in lines]
    peak = ("peak", f"{memory.peak / _GB:.2f}", "")
    title = f"Memory of one GPU at its worst moment: {worst}"
    show_table(console, ("held", "GB", "why"), rows, title, sums=[peak], prose=["why"])
    sums = "; ".join(f"{moment} {memory.at(moment) / _GB:.1f}" for moment in MOMENTS)
    tell(console, f"GB at every moment: {sums}.")


def print_beside(console: Console, work: Workload, host_memory: float | None, disk: float | None) -> bool:
    """Main memory and disk, line by line; whether they are as large as needed, where it was said what there is."""
    host, folder = host_lines(work), disk_lines(work)
    processes = work.devices // work.machines
    count = "1 process" if processes == 1 else f"{processes} processes"
    wanted = (
        (f"Main memory of a machine ({count}), at most", host, host_memory, "host_memory"),
        ("Disk for output_dir", folder, disk, "disk"),
    )
    enough = True
    for what, lines, given, key in wanted:
        total = sum(line.bytes for line in lines) / _GB
        parts = "; ".join(f"{line.name} {line.bytes / _GB:.1f} ({line.reason})" for line in lines if line.bytes)
        tell(console, f"{what}: {total:.1f} GB: {parts}.")
        if given is not None and given < total:
            tell(console, f"That is more than {key}: {given:g} GB.")
            enough = False
    models = 2 * (work.student.parameters + sum(teacher.shape.parameters for teacher in work.teachers)) / _GB
    tell(console, f"The models' own files, in bf16, are {models:.1f} GB.")
    return enough


def print_served(console: Console, mean: Workload) -> None:
    """What teachers that servers run send, and what is not known of them.

    Args:
        mean: the run with the lengths of an average rollout.
    """
    served = mean.served
    if served is None:
        return
    answers, images = (size / _GB for size in network_of(mean, served))
    pictures = f", and up to {images:.1f} GB of images to them" if images else ""
    told = (
        f"{', '.join(served.addresses)}: served; no weights, passes or hidden states of it here, but {served.top_k} "
        f"entries a token. They come to {answers:.1f} GB of answers a step{pictures}, for all processes together."
    )
    tell(console, told)
    if served.cut:
        tell(console, "Terms over its whole vocabulary take these entries, and all other tokens as one.")
    tell(
        console,
        "Nobody was asked: the memory and the speed of what serves are not known here. While it scores, other policies "
        "do; what a step waits for beyond that is logged as teacher_wait_seconds.",
    )


def print_verdict(console: Console, work: Workload, memory: Memory, device_bytes: int, changes: list[Change]) -> None:
    """Whether it fits, by how much, and if not what to change."""
    have, need = device_bytes / _GB, memory.peak / _GB
    if work.vllm_share:
        room = vllm_room(work, device_bytes)
        tell(console, f"vLLM's share has room for {max(room, 0):.1f} whole rollouts at a time.")
        if room < 1:
            tell(console, "That is too little: raise trl.vllm_gpu_memory_utilization.")
    if fits(work, device_bytes):
        spare = have - need
        tell(
            console,
            f"It fits: {need:.1f} of {have:.1f} GB a GPU, with a margin of {spare:.1f} GB ({spare / have:.0%}).",
        )
        if spare < CLOSE * need:
            tell(
                console,
                f"That is close: predictions were within {CLOSE:.0%} of what was measured, on a CPU; docs/plan.md.",
            )
        return
    tell(console, f"It does not fit: {need:.1f} GB are needed, a GPU has {have:.1f} GB.")
    if changes:
        tell(console, "Change, in this order; `dopd-vl train` takes it so:")
    for number, change in enumerate(changes, start=1):
        saved = f"saves {change.saves / _GB:.1f} GB, then {change.peak / _GB:.1f} GB; {change.cost}"
        # Not folded: it is there to be copied.
        tell(console, f"{number}. {change.settings}")
        tell(console, f"   {saved}")
    if not changes or changes[-1].peak > device_bytes:
        tell(console, "No setting brings it below: it needs GPUs of more memory, or smaller models.")


def print_time(console: Console, work: Workload, parts: list[Part], steps: int) -> None:
    """Arithmetic and seconds of a step."""
    head = ("part", "TFLOP a GPU", "seconds", "why")
    rows = [(part.name, f"{part.flops / 1e12:,.0f}", f"{part.seconds:.1f}", part.reason) for part in parts]
    total, rollouts = sum(part.seconds for part in parts), work.rollouts * work.devices
    without = "without communication" + (" and served teachers" if work.served else "")
    step = ("step", f"{sum(part.flops for part in parts) / 1e12:,.0f}", f"{total:.1f}", without)
    show_table(console, head, rows, "Time of a step", sums=[step], prose=["why"])
    if steps < 0:
        tell(console, f"{rollouts} rollouts a step; how many steps num_train_epochs makes depends on the data")
        return
    hours = total * steps / 3600
    tell(console, f"{steps} steps of {rollouts} rollouts: {hours:.1f} hours, {hours * work.devices:.1f} GPU hours")


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
        others = {"teacher": work.teacher_image_tokens, "copy": work.copy_image_tokens}
        told = [f", {who} {n}" for who, n in others.items() if n not in (None, work.image_tokens)]
        of = f"of {work.image_tokens} tokens{''.join(told)}"
        lines.append(f"images in a prompt: {work.images}, {of} (--images, --image_tokens)")
    shapes = [work.student, *(teacher.shape for teacher in work.teachers)]
    estimated = sorted({shape.family for shape in shapes if shape.family not in COUNTED})
    if estimated:
        lines.append(f"activations of {', '.join(estimated)} as those of Qwen3's layers of the same widths")
    if any(scoring.keeps_hidden and not scoring.of_all_tokens for scoring in work.scorings):
        lines.append(f"{work.full_share:.0%} of the tokens taught over the whole vocabulary (--full_share)")
    if work.has_several_teachers:
        lines.append("each teacher teaches every rollout of a step where memory is counted, and an equal share in time")
    if work.quantization or any(teacher.quantization for teacher in work.teachers):
        lines.append("passes of quantised weights hold and take what those of bf16 ones do")
    tell(console, "Assumed: " + "; ".join(lines) + ".")
