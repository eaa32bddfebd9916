import pytest

from satclr import progress


def test_off_a_terminal_lines_tell_how_far_how_fast_and_how_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("satclr.progress.time.monotonic", lambda: now)
    with progress.bar("pretrain", 180, "steps", start=40) as advance:
        for _ in range(5):  # a line after 3.2 s, the next one 10 s later
            now += 1.6
            advance(1)
        now += 1.6
        advance(135)
    assert capsys.readouterr().err.splitlines() == [
        "pretrain: 42/180 steps, 1.6 s/step, 3:41 left",
        "pretrain: 140 steps in 9.6 s",
    ]


def test_speed_and_time_left() -> None:
    assert progress._rate(0, 180, "steps", 60.0) == "0/180 steps, 60.0 s/step, 3:00:00 left"
    assert progress._rate(90, 180, "steps", 0.01) == "90/180 steps, 100 steps/s, 0:01 left"
