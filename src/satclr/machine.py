"""What this machine is and does: device, precision, determinism, and being asked to stop.

torch is imported inside functions, so that a stage that works on numbers starts quickly.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    import torch

# How oneDNN's names of instruction sets that compute in bfloat16 begin; a cap at any other forbids it.
BFLOAT16_ISA = ("ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10_1_512")
GRACE_S = 4.0  # for a checkpoint after SIGINT or SIGTERM; then the process exits

Computed = Literal["float32", "bfloat16"]


def device() -> "torch.device":
    """The GPU if there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(setting: str) -> tuple[Computed, str]:
    """What `float32`, `bfloat16` or `auto` becomes on this machine, and why.

    `auto` is bfloat16 where the hardware computes in it and float32 elsewhere: oneDNN accepts bfloat16 on any CPU
    but emulates it, 7 to 25 times slower than float32 (pytorch/pytorch#118499).
    """
    native, reason = _bfloat16()
    if setting == "float32":
        return "float32", "as set"
    if setting == "bfloat16":
        return "bfloat16", "as set" if native else f"as set; warning: {reason}: 7 to 25 times slower than float32 here"
    return ("bfloat16" if native else "float32"), reason


def _bfloat16() -> tuple[bool, str]:
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, f"{torch.cuda.get_device_name()} {'has' if native else 'lacks'} native bfloat16"
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    capability = torch.backends.cpu.get_cpu_capability()
    if cap and not cap.startswith(BFLOAT16_ISA):
        return False, f"ONEDNN_MAX_CPU_ISA={cap} rules out native bfloat16"
    if capability in ("DEFAULT", "NO AVX", "AVX2"):
        return False, f"this CPU ({capability}) lacks native bfloat16"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    return native, f"this CPU ({capability}) {'has' if native else 'lacks'} native bfloat16"


def autocast(where: "torch.device", computed: str) -> "torch.autocast":
    """A context in which the encoder computes in `float32` or `bfloat16`."""
    import torch

    return torch.autocast(where.type, torch.bfloat16, enabled=computed == "bfloat16")


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free, for the next step. Mapping new pages takes 4% of it (benchmarks/malloc.py).

    Does nothing with another C library.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large tensor
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing is given back


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Allow only deterministic algorithms inside (on a GPU others may change the last bits)."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class Stop:
    """Whether SIGINT or SIGTERM has arrived.

    with machine.stop.deferred() as stop:
        for batch in batches:
            ...
            if stop.requested:
                save()
                stop.leave()
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferred = False

    def listen(self) -> None:
        """Handle signals, and stop when the process that started this one is gone (a killed `dvc repro`)."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if "DVC_STAGE" in os.environ or "RANK" in os.environ:
            threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()

    @contextmanager
    def deferred(self) -> Iterator[Self]:
        """Inside, a signal only sets `requested`, for at most GRACE_S; it takes effect on leaving."""
        self._deferred = True
        try:
            yield self
        finally:
            self.leave()

    def leave(self) -> None:
        """Do what the signal would have done, had it not been deferred."""
        self._deferred = False
        if self.requested is not None:
            self._handle(self.requested, None)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = number
        if self._deferred:
            deadline = threading.Timer(GRACE_S, os._exit, (128 + number,))
            deadline.daemon = True
            deadline.start()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(128 + number)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


stop = Stop()
