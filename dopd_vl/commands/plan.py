"""`dopd-vl plan`: whether a run fits and what it takes, before it is started."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dopd_vl.common.configuration import read_config
from dopd_vl.common.terminal import Terminal, tell
from dopd_vl.planning.config import PlanConfig

if TYPE_CHECKING:
    from dopd_vl.planning.workload import Workload


def main(argv: Sequence[str]) -> int:
    """0: it fits; 1: it does not."""
    config = read_config(PlanConfig, argv, "dopd-vl plan")
    from dopd_vl.common.quiet import quiet_libraries
    from dopd_vl.planning import build, report
    from dopd_vl.planning.advice import changes_to_fit
    from dopd_vl.planning.compute import time_of
    from dopd_vl.planning.memory import fits, memory_of

    quiet_libraries()
    machine, (devices, device_bytes) = build.machine_of(config), build.devices_of(config)
    work = build.workload_of(config)
    build.check_arguments(config)
    mean = work.of_mean_length(config.mean_share)
    memory = memory_of(work, device_bytes)
    console = Terminal()
    tell(
        console,
        f"{config.objective.name}: student {work.student.name} ({work.student.parameters / 1e9:.2f} B parameters, "
        f"{work.trained / 1e9:.3f} B trained), {_teachers(work)}; {devices} x {device_bytes / 1e9:.1f} GB, "
        f"{work.parallel}",
    )
    report.print_memory(console, memory)
    report.print_time(console, work, time_of(work, machine, mean), config.training.max_steps)
    report.print_assumptions(console, work, machine, mean)
    report.print_served(console, mean)
    enough = report.print_beside(console, work, config.host_memory, config.disk)
    on_gpus = fits(work, device_bytes)
    changes = [] if on_gpus else changes_to_fit(config, device_bytes)
    report.print_verdict(console, work, memory, device_bytes, changes)
    return 0 if on_gpus and enough else 1


def _teachers(work: "Workload") -> str:
    """Who teaches, in words."""
    names = [
        f"{teacher} {teacher.shape.name}" + (f" in {teacher.quantization}" if teacher.quantization else "")
        for teacher in work.teachers
    ]
    names += [f"served teacher {address}" for address in (work.served.addresses if work.served else ())]
    return ", ".join(names) or "no teacher"
