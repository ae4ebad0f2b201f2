"""Responses to AutoLogi's prompts from an OpenAI-compatible server, in the form that its scorer reads.

Answers are kept as they come; the same command goes on with those that are missing.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dopd_vl.common.configuration import read_config
from dopd_vl.common.errors import UserError
from dopd_vl.common.files import append_jsonl, read_jsonl, write_jsonl
from dopd_vl.common.visible import print_line

ATTEMPTS = 5
SECONDS_PER_RESPONSE = 3600


@dataclass
class ResponsesConfig:
    """Ask a server AutoLogi's questions."""

    questions: str
    """AutoLogi_en.jsonl or AutoLogi_cn.jsonl"""
    output: str
    """the questions with the model's response as `gen`"""
    model: str
    api_url: str = "http://127.0.0.1:8000/v1"
    sampling: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 16
    limit: int | None = None


def main(argv: Sequence[str]) -> int:
    try:
        ask_all(read_config(ResponsesConfig, argv, "autologi_responses"))
    except UserError as error:
        print_line(f"error: {error}", error=True)
        return 2
    return 0


def ask_all(config: ResponsesConfig) -> None:
    """Write `config.output` once every question is answered.

    Raises:
        UserError: the questions cannot be read, or the server does not answer.
    """
    source = Path(config.questions)
    if not source.is_file():
        raise UserError(f"questions: no file {source}")
    questions = read_jsonl(source)[: config.limit]
    if not questions or not all(isinstance(question.get("prompt"), str) for question in questions):
        raise UserError(f"questions: {source} does not hold rows with a prompt")
    output = Path(config.output)
    kept = output.with_name(f"{output.stem}.partial.jsonl")
    answers = {row["number"]: row["response"] for row in read_jsonl(kept)}
    write_jsonl(kept, ({"number": number, "response": text} for number, text in answers.items()))  # no cut last line
    left = [number for number in range(len(questions)) if number not in answers]
    pool = ThreadPoolExecutor(config.concurrency)
    try:
        asked = {pool.submit(ask, config, questions[number]["prompt"]): number for number in left}
        for done in as_completed(asked):
            number = asked[done]
            answers[number] = done.result()
            append_jsonl(kept, [{"number": number, "response": answers[number]}])
            print_line(f"{len(answers)}/{len(questions)}")
    finally:
        pool.shutdown(cancel_futures=True)
    write_jsonl(output, ({**question, "gen": [answers[number]]} for number, question in enumerate(questions)))


def ask(config: ResponsesConfig, prompt: str) -> str:
    """One response; what the server cannot do now is tried again, what it refuses is an error."""
    settings = dict(config.sampling)
    if "max_new_tokens" in settings:
        settings["max_tokens"] = settings.pop("max_new_tokens")
    body = {
        "model": config.model,
        "messages": [{"role": "user", "content": prompt}],
        "chat_template_kwargs": {"enable_thinking": False},
        **settings,
    }
    request = urllib.request.Request(
        f"{config.api_url.rstrip('/')}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": "Bearer EMPTY"},
    )
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, timeout=SECONDS_PER_RESPONSE) as reply:
                return str(json.loads(reply.read())["choices"][0]["message"]["content"] or "")
        except urllib.error.HTTPError as error:
            passing = error.code == 429 or error.code >= 500
            reason = f"HTTP {error.code}: {error.read(200).decode(errors='replace')}"
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            passing, reason = True, repr(error)
        if not passing or attempt == ATTEMPTS:
            raise UserError(f"api_url: {config.api_url} does not answer ({' '.join(reason.split())})")
        time.sleep(2**attempt / 4)
    raise AssertionError("the last attempt returns or raises")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
