"""`dopd-vl plan`: whether a run fits and what it takes, before it is started."""

from collections.abc import Sequence

from dopd_vl.common.configuration import read_config
from dopd_vl.common.terminal import Terminal, tell
from dopd_vl.planning.config import PlanConfig


def main(argv: Sequence[str]) -> int:
    """0: it fits; 1: it does not."""
    config = read_config(PlanConfig, argv, "dopd-vl plan")
    from dopd_vl.planning import build, report
    from dopd_vl.planning.advice import changes_to_fit
    from dopd_vl.planning.compute import time_of
    from dopd_vl.planning.memory import memory_of

    machine, (devices, device_bytes) = build.machine_of(config), build.devices_of(config)
    work = build.workload_of(config)
    mean = work.of_mean_length(config.mean_share)
    memory = memory_of(work, int(device_bytes))
    fits = memory.peak <= device_bytes
    console = Terminal()
    teacher = "no teacher" if work.teacher is None else f"teacher {work.teacher.name}"
    tell(
        console,
        f"{config.objective.name}: student {work.student.name} ({work.student.parameters / 1e9:.2f} B parameters, "
        f"{work.trained / 1e9:.3f} B trained), {teacher}; {devices} x {device_bytes / 1e9:g} GB, {work.parallel}",
    )
    report.print_memory(console, memory)
    report.print_time(console, work, time_of(work, machine, mean), config.training.max_steps)
    report.print_assumptions(console, work, machine, mean)
    if work.vllm_share:
        room = report.vllm_room(work, device_bytes)
        tell(console, f"vLLM's share has room for {max(room, 0):.1f} whole rollouts at a time.")
        if room < 1:
            tell(console, "That is too little: raise trl.vllm_gpu_memory_utilization.")
            fits = False
    report.print_verdict(console, memory, device_bytes, [] if fits else changes_to_fit(work, device_bytes))
    return 0 if fits else 1
