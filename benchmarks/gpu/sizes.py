"""How large everything is that a session measures: on a GPU, and where a CPU only tries out that it runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Of all stages."""

    device: str
    vocabulary: int
    hidden: int
    teacher_hidden: int
    top_k: int
    checked_tokens: int
    """that are compared with fp64"""
    loss_tokens: tuple[int, ...]
    repeats: int
    """of a measurement, after one that does not count"""
    nano: bool
    """whether the models are the shipped nano ones, in place of untrained ones of the true shapes"""
    responses: tuple[int, ...]
    """tokens of each rollout of a step, four to a prompt"""
    batch: int
    """rollouts of a slice"""
    steps: int
    """that count, after one that does not"""
    generated: int
    """tokens of each response that is drawn"""
    generated_together: tuple[int, ...]
    """responses at a time"""

    def of_time(self, goal: float) -> float | None:
        """A goal for a time, which sizes that only try out that all runs have none of."""
        return goal if self.device == "cuda" else None


FULL = Sizes(
    device="cuda",
    vocabulary=151_936,
    hidden=2048,
    teacher_hidden=4096,
    top_k=128,
    checked_tokens=192,
    loss_tokens=(4096, 16_384),
    repeats=3,
    nano=False,
    responses=(2048, 1500, 700, 1100, 400, 900, 1300, 250),
    batch=2,
    steps=2,
    generated=64,
    generated_together=(8, 64),
)
TINY = Sizes(
    device="cpu",
    vocabulary=2000,
    hidden=32,
    teacher_hidden=48,
    top_k=16,
    checked_tokens=40,
    loss_tokens=(64,),
    repeats=1,
    nano=True,
    responses=(8, 12, 5, 9, 7, 12, 3, 4),
    batch=4,
    steps=1,
    generated=4,
    generated_together=(2,),
)
