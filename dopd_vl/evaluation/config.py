"""Settings of `dopd-vl evaluate`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from dopd_vl.common.errors import ConfigurationError
from dopd_vl.evaluation.sampling import Sampling
from dopd_vl.evaluation.verifiers import Judging


@dataclass
class BenchmarkSettings:
    """The paper's benchmarks, each run by the harness that carries it in an environment of its own."""

    backend: Literal["transformers", "vllm", "server"] = "transformers"
    """what generates: transformers or vLLM inside the harness, or an OpenAI-compatible server at api_url"""
    api_url: str = "http://127.0.0.1:8000/v1"
    """of backend server"""
    served_name: str | None = None
    """what the server calls the model; the model's own name by default"""
    batch_size: int = 16
    """prompts at once, or requests at once to a server"""
    harness: dict[str, str] = field(default_factory=dict)
    """benchmark -> another harness than the table's first"""
    environments: str = "runs/harnesses"
    """folder with an environment for each harness, as the printed commands make them"""
    limit: int | None = None
    """how many questions of each benchmark; a trial of the pipeline, whose scores count for nothing"""
    base: str | None = None
    """scores.json of the untrained student on the same suite; the paper's printed row by default"""
    teacher: str | None = None
    """scores.json of the teacher on the same suite; the paper's printed row by default"""


@dataclass
class EvaluateConfig:
    """Score a model on a prepared set by its tasks' verifiers, or on the paper's benchmarks by their harnesses."""

    model: str = "nano:vision-student"
    """folder, hub id or nano:NAME; of a data set also several, with commas between them, in one table"""
    data: str = ""
    """folder of a privileged data set"""
    suite: str = ""
    """paper-vlm, paper-llm, or names of benchmarks with commas between them; in place of data"""
    variant: str = "none"
    """what of the privileged input the model sees; a deployed student sees none"""
    size: int | None = None
    """how many examples, from the front; all by default"""
    batch_size: int = 32
    """responses at once"""
    max_new_tokens: int = 512
    sampling: Sampling = field(default_factory=Sampling)
    judging: Judging = field(default_factory=Judging)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """for the chat template, e.g. {enable_thinking: false}; the same as in training"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """"auto": bfloat16 on a GPU, float32 on a CPU"""
    output_dir: str | None = None
    """runs/evaluate/MODEL-DATA-VARIANT or runs/evaluate/MODEL-SUITE by default, without the variant none; of several
    models the folder that holds theirs, runs/evaluate by default"""
    overwrite: bool = False
    """discard what another evaluation left in output_dir"""
    trust_remote_code: bool = False
    allow_code: bool = False
    """run the programs that the model writes for tasks of code, with limits but without a security boundary"""
    dry_run: bool = False
    """of a suite: write the commands and say what is missing, run nothing"""
    benchmarks: BenchmarkSettings = field(default_factory=BenchmarkSettings)

    def models(self) -> list[str]:
        """The names in `model`, in their order."""
        return [name for name in (part.strip() for part in self.model.split(",")) if name]

    def check(self) -> None:
        """What can be said without reading anything.

        Raises:
            ConfigurationError: the settings do not go together.
        """
        if not self.data and not self.suite:
            raise ConfigurationError("data: no data set given; `dopd-vl prepare` writes one (or give a suite)")
        if self.data and self.suite:
            raise ConfigurationError("data: give either a data set or a suite, not both")
        models = self.models()
        if not models:
            raise ConfigurationError("model: names no model")
        if repeated := next((name for name in models if models.count(name) > 1), None):
            raise ConfigurationError(f"model: {repeated!r} is named twice")
        if self.suite and len(models) > 1:
            raise ConfigurationError("model: a suite is run for one model at a time; several go with data")
        if self.dry_run and not self.suite:
            raise ConfigurationError("dry_run: only the runs of a suite can be written without being run")
        for name, number in (
            ("size", self.size),
            ("batch_size", self.batch_size),
            ("max_new_tokens", self.max_new_tokens),
            ("benchmarks.batch_size", self.benchmarks.batch_size),
            ("benchmarks.limit", self.benchmarks.limit),
        ):
            if number is not None and number < 1:
                raise ConfigurationError(f"{name}: {number} must be at least 1")
