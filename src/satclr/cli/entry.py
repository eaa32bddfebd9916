"""Where a command begins and how it ends: the application, errors as one message, exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import typer

from satclr import atomic
from satclr.cli.output import fail

app = typer.Typer(
    help="Does contrastive pretraining help multi-label tagging of overhead images, by how much, and why?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

STORE = {"mlflow", "sqlalchemy", "sqlite3"}  # packages whose exceptions mean that the store failed


def main() -> None:
    """Run a command; under torchrun, end at once when it fails.

    At Python's own end gloo would wait for a process that is gone, until torchrun kills this one after 30 s.
    """
    try:
        _main()
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if "RANK" not in os.environ or not code:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _main() -> None:
    """Run a command; an error that a person can mend is one message, not a traceback."""
    from satclr import stopping

    stopping.listen()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        code = exit_code(error)
        if code is None or os.environ.get("SATCLR_TRACEBACK"):
            raise
        fail(sentence(error), code=code)


def exit_code(error: Exception) -> int | None:
    """2 for bad input, 1 for a run that failed, None for a fault of ours.

    Our own exceptions are the sign: a `ValueError` is bad input, a `RuntimeError` a failed run; so is what the
    MLflow store raises.
    """
    package = type(error).__module__.partition(".")[0]
    if package == "satclr" and isinstance(error, ValueError):
        return 2
    failed = isinstance(error, OSError) or (package == "satclr" and isinstance(error, RuntimeError))
    return 1 if failed or package in STORE else None


def sentence(error: Exception) -> str:
    """What an error says to a person: what happened, and what to do where the disk is full."""
    lines = str(error).splitlines() or [type(error).__name__]
    if type(error).__module__.partition(".")[0] in STORE:
        causes = [
            line for line in lines if not line.startswith("(raised as a result of")
        ]  # SQLAlchemy's advice
        text = f"the MLflow store failed: {(causes or lines)[0]}"
    elif isinstance(error, OSError):
        text = str(atomic.explained(error, Path(error.filename or Path.cwd())))
    else:
        text = str(error)
    if "is full" in text:  # SQLite's word for it
        text += "; make space and run the same command again"
    return text
