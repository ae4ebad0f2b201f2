"""What a suite would run: each benchmark with its harness, its commands, and what stands in its way."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dopd_vl.common.digests import digest_model
from dopd_vl.common.errors import ConfigurationError, UserError, nearest
from dopd_vl.common.resources import find_model
from dopd_vl.common.run_layout import name_of_model
from dopd_vl.evaluation.config import EvaluateConfig
from dopd_vl.harnesses.autologi import AUTOLOGI
from dopd_vl.harnesses.environments import Environment, find_environment
from dopd_vl.harnesses.evalscope import EVALSCOPE
from dopd_vl.harnesses.job import Adapter, Job, Step
from dopd_vl.harnesses.livebench import LIVEBENCH
from dopd_vl.harnesses.lm_eval import LM_EVAL
from dopd_vl.harnesses.lmms_eval import LMMS_EVAL
from dopd_vl.harnesses.table import Benchmark, Route, benchmarks, harnesses

ADAPTERS: dict[str, Adapter] = {
    "lmms-eval": LMMS_EVAL,
    "lm-eval": LM_EVAL,
    "evalscope": EVALSCOPE,
    "livebench": LIVEBENCH,
    "autologi": AUTOLOGI,
}


@dataclass(frozen=True)
class Planned:
    """One benchmark of a suite."""

    job: Job
    environment: Environment
    obstacle: str | None
    """why it cannot be run here and now; None: it can"""

    @property
    def adapter(self) -> Adapter:
        return ADAPTERS[self.job.harness.name]

    def steps(self) -> list[Step]:
        """The commands, or none where this harness cannot do it with the chosen backend."""
        supported = self.job.settings.backend in self.adapter.backends
        return self.adapter.steps(self.job) if supported else []

    def identity(self) -> dict[str, Any]:
        """What must not change between the parts of one run."""
        job = self.job
        return {
            "model": job.label,
            "harness": job.harness.name,
            "backend": job.settings.backend,
            "limit": job.settings.limit,
            "sampling": {} if job.route.likelihood else job.sampling(),
            "route": asdict(job.route),
        }


def plan_suite(config: EvaluateConfig, names: Sequence[str], folder: Path) -> list[Planned]:
    """Raises: UserError: the model, a harness or a setting cannot be."""
    settings = config.benchmarks
    for name in settings.harness:
        if name not in names:
            raise ConfigurationError(f"benchmarks.harness: {name!r} is not in the suite, {nearest(name, names)}")
    model = find_model(config.model)
    is_path = model.startswith((".", "/", "~")) or model.count("/") > 1  # a hub id has one slash
    if is_path and settings.backend != "server" and not config.dry_run and not Path(model).is_dir():
        raise UserError(f"model: no folder {model}")
    if Path(model).is_dir():
        model = str(Path(model).resolve())
    label = f"{model_name(model)}-{digest_model(model)[:8]}"
    planned = []
    for name in names:
        benchmark = benchmarks()[name]
        route = _route(benchmark, settings.harness.get(name))
        harness = harnesses()[route.harness]
        environment = find_environment(harness, Path(settings.environments))
        job = Job(
            benchmark=benchmark,
            route=route,
            harness=harness,
            model=model,
            label=label,
            environment=environment.folder,
            folder=(folder / name).absolute(),
            settings=settings,
            trust_remote_code=config.trust_remote_code,
        )
        planned.append(Planned(job, environment, _obstacle(job, environment, config.allow_code)))
    return planned


def model_name(model: str) -> str:
    """A short name that any harness takes for a folder."""
    return re.sub(r"[^\w.-]+", "-", name_of_model(Path(model))).strip("-.").lower() or "model"


def script_of(planned: Sequence[Planned]) -> str:
    """All commands as a shell script, with what a reader should know beside each."""
    lines = ["#!/bin/bash", "# The benchmarks of one model, each with the harness that carries it.", "set -e", ""]
    for one in planned:
        job = one.job
        lines += [f"# {job.benchmark.name}: {job.harness.name} {job.harness.version}", f"# {job.route.rule}"]
        if not job.route.likelihood:
            dropped = job.harness.drops.get(job.settings.backend, [])
            lines.append(f"# sampling: {job.benchmark.sampling.source}")
            if dropped:
                lines.append(f"# not passed on by {job.harness.name} to {job.settings.backend}: {', '.join(dropped)}")
        if one.environment.missing:
            lines += ["# to install it:", *(f"#   {command}" for command in one.environment.install())]
        if one.obstacle:
            lines.append(f"# cannot be run now: {one.obstacle}")
        lines += [*map(shell_line, one.steps()), ""]
    return "\n".join(lines)


def shell_line(step: Step) -> str:
    """A step as a shell would be given it."""
    line = shlex.join(step.argv)
    if step.programs is not None:
        line = f'PATH={shlex.quote(str(step.programs))}:"$PATH" {line}'
    return f"(cd {shlex.quote(str(step.cwd))} && {line})" if step.cwd is not None else line


def _route(benchmark: Benchmark, harness: str | None) -> Route:
    if harness is None:
        return next(iter(benchmark.routes.values()))
    if harness not in benchmark.routes:
        known = ", ".join(benchmark.routes)
        raise ConfigurationError(f"benchmarks.harness: {benchmark.name} has no route by {harness!r}, known: {known}")
    return benchmark.routes[harness]


def _obstacle(job: Job, environment: Environment, allow_code: bool) -> str | None:
    backends = ("server",) if job.route.needs_server else ADAPTERS[job.harness.name].backends
    if job.settings.backend not in backends:
        return f"needs benchmarks.backend {' or '.join(backends)}"
    if environment.missing is not None:
        return environment.missing
    if job.route.runs_code and not allow_code:
        return "runs programs that the model writes; set allow_code: true where that is safe"
    return None
