"""Several processes as one: this process's share of the work, and sums over all processes.

    torchrun --nproc-per-node 2 -m satclr pretrain --profile sample --arm simclr --seed 0

The processes may run on several nodes, each with a copy of the project and all with the same tile store; the other
files are on process 0's node, and `share_file` hands them out. gloo on CPUs, nccl on GPUs. With a single process these
functions exchange nothing. Every process computes the loss from all projections, so a step exchanges projections,
gradients (once) and BatchNorm's statistics.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from satclr import files

TIMEOUT_S = 120.0  # of one exchange: then a process hangs (one that ends is noticed at once)


class ProcessError(RuntimeError):
    """Another process ended: exit code 1, the last good checkpoint kept."""


def rank() -> int:
    """The number of this process, from 0; process 0 logs and writes."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def group(device_type: str) -> Iterator[None]:
    """Join the processes that torchrun started, if it did and they have not joined yet.

    Join only once per process: gloo finds the addresses of the former group.
    """
    if processes() == 1 or dist.is_initialized():
        yield
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device_type == "cuda" else None
    if device:
        torch.cuda.set_device(device)
    with _peers("starting"):
        backend, timeout = "nccl" if device else "gloo", timedelta(seconds=TIMEOUT_S)
        dist.init_process_group(backend, timeout=timeout, device_id=device)
    try:
        yield
    finally:
        dist.destroy_process_group()


def share(whole: slice) -> slice:
    """The part of `whole` that is this process's."""
    return shares(whole, processes())[rank()]


def shares(whole: slice, parts: int) -> list[slice]:
    """`whole` cut into `parts` runs whose lengths differ by one at most."""
    ends = [whole.start + (whole.stop - whole.start) * i // parts for i in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def gather(z: Tensor, whole: slice) -> Tensor:
    """Combine z (2,b,D) of each process's `share(whole)` into (2,B,D), with gradients.

    Every process must compute the same function of the result; it then has the gradient of its own rows.
    """
    if processes() == 1:
        return z
    count = whole.stop - whole.start
    rows = share(slice(0, count))
    every = z.new_zeros(z.shape[0], count, z.shape[2])
    every[:, rows] = z.detach()
    _sum(every, "gathering projections")
    every[:, rows] = z  # the same values, with their graph
    return every


def sum_gradients(model: nn.Module) -> None:
    """Add up the processes' gradients, each of the whole batch's loss by the process's own tiles."""
    if processes() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = _sum(torch.cat([g.flatten() for g in gradients]), "summing gradients")
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def collect(rows: Tensor, count: int) -> list[Tensor]:
    """On process 0 every process's rows (n,D), by rank; empty elsewhere. `count`: the most rows that one has."""
    if processes() == 1:
        return [rows]
    sizes = _all(torch.tensor(len(rows), device=rows.device), "collecting rows").tolist()
    padded = nn.functional.pad(rows, (0, 0, 0, count - len(rows)))
    every = [torch.empty_like(padded) for _ in sizes] if rank() == 0 else None
    with _peers("collecting rows"):
        dist.gather(padded, every)
    return [block[:size] for block, size in zip(every or [], sizes, strict=False)]


def agree(word: bool, *, device: torch.device) -> bool:
    """What process 0 passed, on every process; waits for all of them."""
    if processes() == 1:
        return word
    return bool(_sum(torch.tensor([int(word and rank() == 0)], device=device), "waiting"))


def share_file(path: Path, *, device: torch.device) -> None:
    """Give every node the file that process 0 has at `path`, or none if it has none."""
    if processes() == 1:
        return
    raw = np.fromfile(path, np.uint8) if path.exists() else np.empty(0, np.uint8)
    digest = int.from_bytes(hashlib.sha256(raw.data).digest()[:7], "big")
    own = torch.tensor([len(raw), digest], device=device)
    every = _all(own, "sharing files")
    if not (every == every[0]).all():
        whole = torch.zeros(int(every[0, 0]), dtype=torch.uint8, device=device)
        if rank() == 0:
            whole.copy_(torch.from_numpy(raw))
        with _peers("sharing files"):
            dist.broadcast(whole, 0)
        if os.environ["LOCAL_RANK"] == "0" and not own.equal(every[0]):
            path.unlink(missing_ok=True)
            if len(whole):
                with files.replacing(path) as part:
                    whole.cpu().numpy().tofile(part)
    agree(True, device=device)  # barrier: every node has the file


def synchronize_batch_norm(model: nn.Module) -> None:
    """Let every BatchNorm inside `model` normalise by the batch of all processes, with the same parameters and buffers.

    PyTorch's SyncBatchNorm runs only on GPUs; on a CPU `SyncBatchNorm` below takes its place.
    """
    if processes() == 1:
        return
    if not next(model.parameters()).is_cuda:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the base of all three
                module.__class__ = SyncBatchNorm
    elif "timm" in sys.modules:  # whose BatchNorms have an activation
        from timm.layers import convert_sync_batchnorm

        convert_sync_batchnorm(model)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
    """BatchNorm, in training over the rows of all processes, on any device: x (B,C,...) → the same shape.

    timm's has an activation, and perhaps dropout, inside.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            y, mean, var, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)  # type: ignore[union-attr, arg-type]
        else:  # one process by itself, by the batch where it has no statistics
            mean, var = self.running_mean, self.running_var
            y = nn.functional.batch_norm(x, mean, var, self.weight, self.bias, mean is None, eps=self.eps)
        out: Tensor = y
        for then in self.children():
            out = then(out)
        return out


class _Normalize(torch.autograd.Function):
    """Mean and variance over all processes' rows, combined from each one's own so that large means do no harm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Passing running statistics (unused: momentum 0) makes those of a bfloat16 x float32.
        unused = torch.zeros(2, x.shape[1], dtype=weight.dtype)
        own_mean, own_var = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)  # a biased variance
        rows = own_mean.new_full((1,), x.numel() / x.shape[1])
        every = _all(torch.cat([own_mean, own_var, rows]), "synchronizing BatchNorm")
        means, variances, counts = every.split([len(own_mean), len(own_mean), 1], 1)
        parts = counts / counts.sum()
        mean = (parts * means).sum(0)
        var = (parts * (variances + (means - mean).square())).sum(0)
        y = nn.functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        count = counts.sum()
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, var, count)  # or running_var would keep the graph of every step
        return y, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            g, x, weight, None, None, mean, inverse, True, 0.0, [False, True, True]
        )
        whole = _all(torch.stack([by_weight, by_bias]), "synchronizing BatchNorm").sum(0) / count
        # x̂ = (x - mean)·inverse; the gradient is weight·inverse·(g - mean of g - x̂·mean of g·x̂). Inference's BatchNorm
        # computes (values - offset)·scale in one pass, with float32 factors for bfloat16 values.
        scale = weight * inverse
        by_input = _shifted(g, whole[1], scale).add_(_shifted(x, mean, -scale * inverse * whole[0]))
        return by_input, by_weight, by_bias, None


def _shifted(values: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    """(values - offset)·scale by channel, for values (B,C,...)."""
    return nn.functional.batch_norm(values, offset, torch.ones_like(offset), scale, training=False, eps=0.0)


def _sum(values: Tensor, what: str) -> Tensor:
    """`values` added up over all processes, in place."""
    with _peers(what):
        dist.all_reduce(values)
    return values


def _all(values: Tensor, what: str) -> Tensor:
    """Every process's `values`, by rank: (processes, ...). Small ones take half the time of `_sum`."""
    every = values.new_empty(processes(), *values.shape)
    with _peers(what):
        dist.all_gather(list(every), values)
    return every


@contextmanager
def _peers(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ProcessError(f"process {rank()} of {processes()} lost another while {what} ({reason[0][:200]})") from None
