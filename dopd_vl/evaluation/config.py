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
    """What generates: transformers or vLLM inside the harness, or an OpenAI-compatible server at api_url."""
    api_url: str = "http://127.0.0.1:8000/v1"
    """The address of the server, with backend server."""
    served_name: str | None = None
    """What the server calls the model. By default it is the model's own name."""
    batch_size: int = 16
    """The harness has so many prompts at once, or so many requests at once to a server."""
    harness: dict[str, str] = field(default_factory=dict)
    """The harness of a benchmark by its name, where it is not to be the table's first, e.g. {C-Eval: lm-eval}."""
    environments: str = "runs/harnesses"
    """The folder with an environment for each harness, as the printed commands make them."""
    limit: int | None = None
    """So many questions of each benchmark are asked: a trial of the pipeline, whose scores count for nothing. By
    default all are."""
    base: str | None = None
    """The scores.json of the untrained student on the same suite. By default the paper's printed row is taken."""
    teacher: str | None = None
    """The scores.json of the teacher on the same suite. By default the paper's printed row is taken."""


@dataclass
class EvaluateConfig:
    """Score a model on a prepared set by its tasks' verifiers, or on the paper's benchmarks by their harnesses.

    See docs/evaluation.md.
    """

    model: str = "nano:vision-student"
    """A folder, a hub id or `nano:NAME`. On a data set it may be several with commas between them, which stand in one
    table."""
    data: str = ""
    """The folder of a privileged data set."""
    suite: str = ""
    """In place of data: paper-vlm, paper-llm, or names of benchmarks with commas between them."""
    variant: str = "none"
    """What of the privileged input the model is shown; a deployed student sees none."""
    size: int | None = None
    """So many examples are scored, from the front. By default all are."""
    batch_size: int = 32
    """So many responses are generated at once."""
    max_new_tokens: int = 512
    """A response ends after so many tokens at the latest."""
    sampling: Sampling = field(default_factory=Sampling)
    judging: Judging = field(default_factory=Judging)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the chat template, e.g. {enable_thinking: false}; give those of training."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the weights; "auto" is bfloat16 on a GPU and float32 on a CPU."""
    output_dir: str | None = None
    """The folder of responses and scores. By default it is runs/evaluate/MODEL-DATA-VARIANT or
    runs/evaluate/MODEL-SUITE, without the variant none; of several models it is the folder that holds theirs, by
    default runs/evaluate."""
    overwrite: bool = False
    """Discard what another evaluation left in output_dir."""
    trust_remote_code: bool = False
    """Run Python code that a model folder brings along."""
    allow_code: bool = False
    """Run the programs that the model writes for tasks of code, with limits but without a security boundary
    (SECURITY.md)."""
    dry_run: bool = False
    """Of a suite, write the commands and say what is missing, but run nothing."""
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
