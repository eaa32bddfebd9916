import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import torch

from satclr import machine


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[machine.Stop]:
    """A stop flag that listens, and the former handlers afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.undo()  # conftest makes `listen` do nothing
    monkeypatch.setattr(machine, "GRACE_S", 10_000)
    stop = machine.Stop()
    stop.listen()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_deferred_signal_sets_the_flag_and_takes_effect_on_leaving(
    number: int, error: type[BaseException], early: bool, handlers: machine.Stop
) -> None:
    reached: list[object] = []
    with pytest.raises(error) as caught, handlers.deferred() as stop:  # noqa: PT012 - the block is what is tested
        signal.raise_signal(number)
        reached.append(stop.requested)
        if early:
            stop.leave()
            reached.append("never")
    assert reached == [number]
    assert getattr(caught.value, "code", 143) == 143


LISTENING = """
import time
from satclr import machine
machine.GRACE_S = 1.0
machine.stop.listen()
print("ready", flush=True)
"""


@contextmanager
def started(code: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    plain = {k: v for k, v in os.environ.items() if k not in {"DVC_STAGE", "RANK"}} | environment
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=plain) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_sigterm_ends_a_process_within_the_grace_period() -> None:
    with started(LISTENING + "with machine.stop.deferred(): time.sleep(60)") as process:
        began = time.monotonic()
        process.terminate()
        assert process.wait() == 143
        assert time.monotonic() - began < 5


def test_a_stage_does_not_outlive_its_dvc() -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LISTENING + 'time.sleep(60)'!r}])"
    with started(parent, DVC_STAGE="pretrain") as process:
        (child,) = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        assert psutil.wait_procs([child], timeout=10)[1] == []


@pytest.mark.parametrize(
    ("capability", "flags", "cap", "computed"),
    [
        ("AVX2", (False, False), "", "float32"),
        ("AVX512", (False, False), "", "float32"),  # oneDNN accepts bfloat16 there and emulates it
        ("AVX512", (True, False), "", "bfloat16"),
        ("AVX512", (False, True), "", "bfloat16"),
        ("AVX512", (True, True), "AVX2", "float32"),
        ("AVX512", (True, True), "avx512_core", "float32"),
        ("AVX512", (True, True), "AVX512_CORE_AMX", "bfloat16"),
        ("AVX2", (True, True), "", "float32"),  # ATEN_CPU_CAPABILITY=avx2 on a newer CPU
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_computes_in_it(
    capability: str, flags: tuple[bool, bool], cap: str, computed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flags[0])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: flags[1])
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert machine.precision("auto")[0] == computed
    assert machine.precision("float32")[0] == "float32"
    asked, reason = machine.precision("bfloat16")
    assert (asked, "slower" in reason) == ("bfloat16", computed == "float32")
