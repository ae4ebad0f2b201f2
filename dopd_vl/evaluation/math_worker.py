"""The process that compares mathematics: a response and an answer in, a verdict out, one JSON line each.

sympy may take for ever over a short text (`9^{9^{9^9}}`), or all memory. Here the kernel itself ends it, whatever it is
about, and whoever asks starts another (`dopd_vl.evaluation.mathematics`). The process ends with its standard input.
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any

START_SECONDS = 120.0
"""For the imports, on a slow disk."""
SECONDS = 5.0
"""Of the processor, for one verdict: so that a busy machine gives no other verdicts than an idle one."""
MEMORY = 2 * 1024**3
"""Bytes of address space."""


def main() -> None:
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks
    signal.setitimer(signal.ITIMER_REAL, START_SECONDS)
    from math_verify import parse, verify

    signal.setitimer(signal.ITIMER_REAL, 0)
    answers, sys.stdout = sys.stdout, sys.stderr

    # No limits of math-verify's own: they are handlers of signals, which a long computation in C never comes to.
    @lru_cache(maxsize=16)  # the rollouts of one prompt share it
    def parsed(answer: str) -> Any:
        return parse(f"${answer}$", parsing_timeout=None)

    verdict: bool | str | None = None  # ready
    while True:
        answers.write(f"{json.dumps(verdict)}\n")
        answers.flush()
        asked = sys.stdin.readline()
        if not asked:
            return
        response, answer = json.loads(asked)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal has no handler, and ends the process
        try:
            verdict = bool(verify(parsed(answer), parse(response, parsing_timeout=None), timeout_seconds=None))
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}"[:200]
        signal.setitimer(signal.ITIMER_PROF, 0)
