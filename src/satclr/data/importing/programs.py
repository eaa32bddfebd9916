"""Archives that Python cannot read, such as rar, unpacked by a program that is installed.

In: an archive and a folder. Out: the files in the folder, or what the program said against it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

POLL_S: Final = 0.5


@dataclass(frozen=True)
class Program:
    """name: of the executable. package: Debian's. arguments: what unpacks {archive} into {folder}."""

    name: str
    package: str
    arguments: tuple[str, ...]

    def unpack(self, archive: Path, folder: Path, *, watch: Callable[[], None]) -> str | None:
        """Fill `folder`; None, or why it could not be done. `watch` is called now and then, and may raise."""
        command = [self.name, *(part.format(archive=archive, folder=folder) for part in self.arguments)]
        with (
            tempfile.TemporaryFile("w+", errors="replace") as errors,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
            ) as process,
        ):
            try:
                while not _ended(process):
                    watch()
            except BaseException:
                process.kill()
                raise
            errors.seek(0)
            said = errors.read().strip().splitlines()
        if not process.returncode:
            return None
        return said[0].strip() if said else f"exit code {process.returncode}"


PROGRAMS: Final = (
    Program("bsdtar", "libarchive-tools", ("-x", "-f", "{archive}", "-C", "{folder}")),
    Program("unar", "unar", ("-quiet", "-no-directory", "-force-overwrite", "-o", "{folder}", "{archive}")),
    # Without the package of rar's methods, they unpack rar archives only if these are not compressed.
    Program("7z", "p7zip-rar", ("x", "-y", "-bd", "-o{folder}", "{archive}")),
    Program("7zz", "7zip-rar", ("x", "-y", "-bd", "-o{folder}", "{archive}")),
)


def installed() -> list[Program]:
    """The programs that are here, the one that unpacks most kinds first."""
    return [program for program in PROGRAMS if shutil.which(program.name)]


def offer() -> str:
    """What a person may install."""
    programs = ", ".join(f"{program.name} (package {program.package})" for program in PROGRAMS)
    return f"one of {programs}, e.g. `apt install {PROGRAMS[0].package}`"


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return False
    return True
