"""The result file that lm-eval and lmms-eval share: {"results": {task: {"metric,filter": value}}, "n-samples": ...}."""

from dopd_vl.harnesses.job import Job, ResultError, Score, combined, load_result, newest, number_at


def read(job: Job, pattern: str) -> Score:
    """The score of a job whose newest result file matches `pattern`."""
    file = newest(job.folder, pattern, job.harness.name)
    result = load_result(file)
    parts = {part.task: number_at(result, ["results", part.task, part.metric], file) for part in job.route.scores}
    return combined(job, parts, _count(job, result))


def _count(job: Job, result: dict) -> int | None:
    tasks = result.get("n-samples")
    if not isinstance(tasks, dict):
        return None
    names = [part.task for part in job.route.scores]
    subtasks = result.get("group_subtasks") or {}
    names = [name for task in names for name in (subtasks.get(task) or [task])]
    counts = [tasks[name]["effective"] for name in names if isinstance(tasks.get(name), dict)]
    return sum(counts) if len(counts) == len(names) else None


def arguments(values: dict[str, object], what: str) -> str:
    """`a=1,b=2`, as both harnesses take their settings.

    Raises:
        ResultError: a value holds what would be read as the end of it.
    """
    for name, value in values.items():
        if any(sign in str(value) for sign in ',="') and not str(value).startswith("http"):
            raise ResultError(f"{what}: {name}={value} holds a sign that the harness splits at; rename the folder")
    return ",".join(f"{name}={value}" for name, value in values.items())
