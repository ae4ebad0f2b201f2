"""lmms-eval: the eight vision benchmarks. Its result is OUTPUT/MODEL/DATE_results.json, checked with 0.7.3.

Its cache keeps greedy responses alone, so a run that is stopped begins its benchmark again.
"""

from functools import partial

from dopd_vl.harnesses.job import Adapter, Job, Step
from dopd_vl.harnesses.lm_eval_results import arguments, read

_SECONDS_PER_RESPONSE = 3600  # its own limit for a server's answer is 10 seconds


def _steps(job: Job) -> list[Step]:
    sampling = job.sampling()
    seed = sampling.pop("seed")
    argv = [job.python, "-m", "lmms_eval", *_model(job)]
    argv += ["--tasks", ",".join(part.task for part in job.route.scores)]
    argv += ["--batch_size", str(job.settings.batch_size)]
    argv += ["--gen_kwargs", arguments(sampling, "sampling"), "--seed", str(seed)]
    argv += ["--output_path", str(job.folder / "results"), "--log_samples"]
    if job.settings.limit is not None:
        argv += ["--limit", str(job.settings.limit)]
    return [Step(argv)]


def _model(job: Job) -> list[str]:
    frames = job.route.options.get("frames")
    if job.settings.backend == "server":
        given: dict[str, object] = {
            "model_version": job.served_name,
            "base_url": job.settings.api_url,
            "api_key": "EMPTY",
            "num_concurrent": job.settings.batch_size,
            "timeout": _SECONDS_PER_RESPONSE,
            **({"max_frames_num": frames} if frames else {}),
        }
        return ["--model", "openai", "--model_args", arguments(given, "model")]
    if job.settings.backend == "vllm":
        given = {"model": job.model, "is_qwen3_vl": True, **({"nframes": frames} if frames else {})}
        return ["--model", "vllm", "--model_args", arguments(given, "model")]
    given = {"pretrained": job.model, **({"max_num_frames": frames} if frames else {})}
    return ["--model", "qwen3_vl", "--model_args", arguments(given, "model")]


LMMS_EVAL = Adapter(_steps, partial(read, pattern="*_results.json"), ("transformers", "vllm", "server"))
