"""Records to annotate, and preparations that annotate them."""

import io
import json

from answering import text_of
from privileged_samples import noise
from rich.console import Console

from privileged.annotators.settings import AnnotateConfig
from privileged.prepare.config import PrepareConfig, SourceConfig
from privileged.prepare.prepare import prepare

KEY = "sk-test-0123456789abcdef"


def write_records(folder, count, images=False, **extra):
    path = folder / "records.jsonl"
    rows = []
    for number in range(count):
        row = {"id": f"r{number}", "prompt": f"Question {number}: what comes next?", "answer": "a heron", **extra}
        if images:
            noise(seed=number).save(folder / f"{number}.png")
            row["images"] = [f"{number}.png"]
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def configure(path, output, url, **changes):
    annotate = {"url": url, "model": "m", "key_env": "TEST_KEY", "parts": ["hints"], "recheck": False, "concurrency": 8}
    annotate |= {"timeout": 20.0, "retries": 4, **changes.pop("annotate", {})}
    source = SourceConfig("jsonl", {"path": str(path)}, default_task="exact")
    settings = {"shard_size": 10, "max_rejected_share": 1.0, **changes}
    return PrepareConfig(source, str(output), annotate=AnnotateConfig(**annotate), **settings)


def run(config):
    """The result, and what was said."""
    stream = io.StringIO()
    result = prepare(config, console=Console(file=stream, width=500))
    return result, stream.getvalue()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def question_number(body):
    return int(text_of(body).partition("Question ")[2].partition(":")[0])
