"""lm-eval: C-Eval by log-likelihood. Its result is OUTPUT/MODEL/results_DATE.json, checked with 0.4.13."""

from functools import partial

from dopd_vl.harnesses.job import Adapter, Job, Step
from dopd_vl.harnesses.lm_eval_results import arguments, read


def _steps(job: Job) -> list[Step]:
    name = {"transformers": "hf", "vllm": "vllm"}[job.settings.backend]
    given: dict[str, object] = {"pretrained": job.model}
    if job.trust_remote_code:
        given["trust_remote_code"] = True
    argv = [job.python, "-m", "lm_eval", "run", "--model", name, "--model_args", arguments(given, "model")]
    argv += ["--tasks", ",".join(part.task for part in job.route.scores)]
    argv += ["--batch_size", str(job.settings.batch_size)]
    argv += ["--num_fewshot", str(job.route.options.get("shots", 0))]
    argv += ["--output_path", str(job.folder / "results"), "--log_samples"]
    argv += ["--use_cache", str(job.folder / "cache")]
    if job.settings.limit is not None:
        argv += ["--limit", str(job.settings.limit)]
    return [Step(argv)]


# Likelihoods of given letters are not to be had from a chat server.
LM_EVAL = Adapter(_steps, partial(read, pattern="results_*.json"), ("transformers", "vllm"))
