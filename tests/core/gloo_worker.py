"""What each of the processes of test_routing runs. A module of its own, since a spawned process has to import it."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from dopd_vl.core import compute_thresholds
from dopd_vl.core.divergences import log_softmax, sampled_logp
from dopd_vl.objectives.dopd import DopdSettings, route_tokens
from dopd_vl.objectives.dopd_loss import dopd_loss


def ragged_logits(sequences: int, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student, teacher and privileged student logits, ids and mask: the same on every call, lengths 1, 2, ..."""
    generator = torch.Generator().manual_seed(7)
    logits = [torch.randn(sequences, tokens, 5, generator=generator, dtype=torch.float64) * 2 for _ in range(3)]
    ids = torch.randint(5, (sequences, tokens), generator=generator)
    mask = torch.arange(tokens) < torch.arange(1, sequences + 1)[:, None]
    return *logits, ids, mask


def ragged_batch(sequences: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """The sampled tokens' log-probabilities under both privileged policies, and the mask."""
    _, teacher, privileged_student, ids, mask = ragged_logits(sequences, tokens)
    return sampled_logp(log_softmax(teacher), ids), sampled_logp(log_softmax(privileged_student), ids), mask


def global_and_rank_thresholds(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    # The joined batch first: once processes are joined, "global" means all of them.
    batch = ragged_logits(5, 7)
    joined = {scope: whole_loss(batch, scope) for scope in ("global", "sequence")}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    share = slice(0, 2) if rank == 0 else slice(2, 5)
    l_T, l_S, mask = (tensor[share] for tensor in ragged_batch(5, 7))

    def thresholds(mask: Tensor, scope: str) -> list[float]:
        means = compute_thresholds(l_T, l_S, mask, scope=scope)
        return [means.gap.item(), means.teacher_prob.item(), means.student_prob.item()]

    result = {
        "uneven": {
            "regime": route_tokens(l_T, l_S, mask, DopdSettings()).regime,
            "thresholds": thresholds(mask, "global"),
        },
        "own": thresholds(mask, "rank"),
        "one empty": thresholds(mask if rank == 0 else mask & False, "global"),
        "both empty": thresholds(mask & False, "global"),
        "joined": joined,
        "token_loss": {
            scope: whole_loss(tuple(tensor[share] for tensor in batch), scope) for scope in ("global", "sequence")
        },
    }
    torch.save(result, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def whole_loss(batch: tuple[Tensor, ...], scope: str) -> Tensor:
    return dopd_loss(*batch, DopdSettings(top_k=2, threshold_scope=scope)).token_loss
