"""Memory and time a loss adds, forward and backward, against lightly's and against the paper's way.

    python benchmarks/loss_memory.py

Memory is the peak of resident memory above what stood before, each in a process of its own (Linux). The
paper's way, a broadcast cosine similarity, needs 8 GiB for each (2B,2B,D) at B = 2048 and is measured at 256.
Time alternates A B A B in one process, on one core. lightly's rows appear where lightly is installed.
"""

import statistics
import subprocess
import sys
import time
from importlib.util import find_spec

import torch
from common import Row, memory_kib
from torch import Tensor, nn

from satclr.pretrain.loss import mulsupcon, nt_xent, supcon

D, LABELS, TEMPERATURE = 128, 60, 0.5
ROUNDS = 3


def rows() -> list[Row]:
    """One row a comparison: name, ours, theirs, ratio (theirs / ours), unit; MiB of peak memory, or ms."""
    table = [memory("nt_xent", "broadcast", B=256), memory("nt_xent", "cross_entropy", B=2048)]
    table += [memory(name, "cross_entropy", B=2048) for name in ("supcon_any", "jaccard", "mulsupcon")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table += [duration("nt_xent", "cross_entropy", B=B) for B in (128, 2048)]
        if find_spec("lightly"):
            table += [memory("nt_xent", "lightly", B=2048), duration("nt_xent", "lightly", B=2048)]
    finally:
        torch.set_num_threads(threads)
    return table


def memory(ours: str, theirs: str, *, B: int) -> Row:
    return row(f"{ours} against {theirs}, peak memory, B={B}, D={D}", peak_mib(ours, B), peak_mib(theirs, B), "MiB")


def duration(ours: str, theirs: str, *, B: int) -> Row:
    z, targets = batch(B)
    taken: dict[str, list[float]] = {ours: [], theirs: []}
    repeats = max(1, 2**22 // (2 * B) ** 2)
    for _ in range(ROUNDS + 1):
        for name, times in taken.items():
            start = time.perf_counter()
            for _ in range(repeats):
                run(name, z, targets)
            times.append((time.perf_counter() - start) / repeats * 1000)
    a, b = (statistics.median(taken[name][1:]) for name in (ours, theirs))
    return row(f"{ours} against {theirs}, forward and backward, B={B}, D={D}", a, b, "ms")


def row(name: str, ours: float, theirs: float, unit: str) -> Row:
    return {"name": name, "ours": ours, "theirs": theirs, "ratio": theirs / ours, "unit": unit}


def batch(B: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2 * B, D, generator=generator).requires_grad_()
    return z, (torch.rand(B, LABELS, generator=generator) < 0.08).repeat(2, 1)


def run(name: str, z: Tensor, targets: Tensor) -> None:
    z.grad = None
    loss(name, z, targets).backward()


def loss(name: str, z: Tensor, targets: Tensor) -> Tensor:
    match name:
        case "nt_xent":
            return nt_xent(z, TEMPERATURE)
        case "supcon_any":
            return supcon(z, targets, TEMPERATURE, "any")
        case "jaccard":
            return supcon(z, targets, TEMPERATURE, "jaccard")
        case "mulsupcon":
            return mulsupcon(z, targets, TEMPERATURE)
        case "lightly":
            from lightly.loss import NTXentLoss

            value: Tensor = NTXentLoss(TEMPERATURE)(*z.chunk(2))
            return value
        case "broadcast":
            similarity = nn.functional.cosine_similarity(z[:, None], z[None], dim=2)
        case "cross_entropy":
            x = nn.functional.normalize(z, dim=1)
            similarity = x @ x.T
        case _:
            raise ValueError(f"no loss is called {name!r}")
    own = torch.eye(len(z), dtype=torch.bool)
    logits = (similarity / TEMPERATURE).masked_fill(own, -torch.inf)
    return nn.functional.cross_entropy(logits, torch.arange(len(z)).roll(len(z) // 2))


def peak_mib(name: str, B: int) -> float:
    done = subprocess.run([sys.executable, __file__, name, str(B)], check=True, capture_output=True, text=True)
    return float(done.stdout) / 1024


def measure(name: str, B: int) -> int:
    """KiB added at the peak; a small run before it pays for what the first call loads."""
    run(name, *batch(8))
    z, targets = batch(B)
    before = memory_kib()["VmRSS"]
    run(name, z, targets)
    return memory_kib()["VmHWM"] - before


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1], int(sys.argv[2])))
    else:
        for line in rows():
            print("{name}: ours {ours:.1f}, theirs {theirs:.1f} {unit}, ratio {ratio:.2f}".format(**line))
