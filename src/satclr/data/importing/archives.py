"""The files of a download, whatever it is packed in, without trusting it.

In: a folder, a zip, a tar or, through an installed program, a rar; archives inside archives too. Out: its
`Member`s. No member's path leaves its archive, none is a link, and what is unpacked stays within a multiple
of what was downloaded.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final, Self, cast

from satclr import progress
from satclr.data.importing import programs, rar

# Pictures hardly compress and label tables some fifty times; a bomb does thousands of times.
RATIO_MAX: Final = 100
SLACK_BYTES: Final = 64 << 20
DEPTH_MAX: Final = 3
HEADER_MAX: Final = 16 << 20  # bytes: a name with its attributes takes some hundred

TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
FOREIGN_SUFFIXES: Final = (".rar", ".7z", ".tar.zst")
SUFFIXES: Final = (".zip", *TAR_SUFFIXES, *FOREIGN_SUFFIXES)
IGNORED: Final = frozenset({"__macosx", "thumbs.db", "desktop.ini"})

# What reading a member raises where the archive is damaged, or packed by a method Python lacks.
DAMAGE: Final = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


class SourceError(ValueError):
    """A download that cannot be imported as it is: bad input, exit code 2."""


@dataclass(frozen=True)
class Member:
    """One file of a download.

    path: where it lies in it. open: its bytes. unpacked: its own file in the scratch folder, if it has one.
    """

    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]
    unpacked: Path | None = None


class Download:
    """The members of `source`, unpacked into `scratch` where they cannot be read in place.

    A context manager: it holds archives open. What `scratch` already has from an earlier run is used again.

    Raises SourceError for a damaged or encrypted archive, a path that leaves it, a link, two names that
    differ by case only, a decompression bomb, or an archive that needs a program that is not installed.
    """

    def __init__(self, source: Path, scratch: Path) -> None:
        self._stack = ExitStack()
        self._scratch = scratch
        self._budget = 0
        self.members: list[Member] = []
        if not source.exists():
            raise SourceError(f"{source}: no such file or folder")
        try:
            if source.is_dir():
                self._folder(source, PurePosixPath(), depth=0, trusted=True)
            elif _is_archive(source.name):
                self._archive(source, PurePosixPath(), depth=0)
            else:
                raise SourceError(f"{source}: neither a folder nor an archive ({', '.join(SUFFIXES)})")
            self._refuse_clashes(source)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _folder(self, folder: Path, prefix: PurePosixPath, *, depth: int, trusted: bool) -> None:
        for path in _walk(folder, trusted=trusted):
            inside = prefix / PurePosixPath(path.relative_to(folder).as_posix())
            if _is_archive(path.name):
                self._archive(path, inside, depth=depth)
            else:
                unpacked = None if trusted else path
                self.members.append(Member(inside, path.stat().st_size, _opener(path), unpacked))

    def _archive(self, archive: Path, inside: PurePosixPath, *, depth: int) -> None:
        if depth >= DEPTH_MAX:
            raise SourceError(f"{inside}: an archive {depth} archives deep; unpack it yourself")
        if depth == 0:
            self._budget += RATIO_MAX * archive.stat().st_size + SLACK_BYTES
        prefix = inside.parent / _stem(archive.name) if inside.name else PurePosixPath()
        if archive.name.lower().endswith(".zip"):
            self._zip(archive, prefix, depth=depth)
            return
        folder = self._scratch / f"{len(self.members):07}-{_stem(archive.name)}"
        if not folder.exists():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            if shutil.disk_usage(part).free < archive.stat().st_size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            progress.say(f"unpack {archive.name}")
            tar = archive.name.lower().endswith(TAR_SUFFIXES)
            self._untar(archive, part) if tar else self._unpack(archive, part)
            part.rename(folder)
        self._folder(folder, prefix, depth=depth + 1, trusted=False)

    def _zip(self, archive: Path, prefix: PurePosixPath, *, depth: int) -> None:
        try:
            file = self._stack.enter_context(zipfile.ZipFile(archive))
        except Exception as error:  # noqa: BLE001 - zipfile raises whatever its parsing raises
            raise SourceError(f"{archive}: not a whole zip archive ({error}); download it again") from None
        for info in file.infolist():
            inside = _inside(archive, info.filename)
            if info.is_dir() or _ignored(inside):
                continue
            if info.flag_bits & 1:
                raise SourceError(f"{archive}: {info.filename} is encrypted; unpack it yourself")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise SourceError(f"{archive}: {info.filename} is a link; links are not followed")
            self._spend(archive, info.file_size)
            member = Member(prefix / inside, info.file_size, _zip_opener(file, info))
            if _is_archive(inside.name):
                nested = self._scratch / f"{len(self.members):07}-{depth}-{inside.name}"
                copy(member, nested)
                self._archive(nested, member.path, depth=depth + 1)
            else:
                self.members.append(member)

    def _untar(self, archive: Path, folder: Path) -> None:
        try:
            with (
                _decompressed(archive) as stream,
                tarfile.open(fileobj=cast("IO[bytes]", _Headers(stream, archive)), mode="r:") as file,
            ):
                for info in file:
                    inside = _inside(archive, info.name)
                    if info.isdir() or _ignored(inside):
                        continue
                    if not info.isreg():
                        raise SourceError(f"{archive}: {info.name} is no plain file; links are not followed")
                    self._spend(archive, info.size)
                    file.extract(info, folder, filter="data")
        except (tarfile.TarError, OSError, *DAMAGE) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SourceError(f"{archive}: not a whole tar archive ({error}); download it again") from None

    def _unpack(self, archive: Path, folder: Path) -> None:
        promised = rar.files(archive) if archive.suffix.lower() == ".rar" else []
        if promised is None:
            raise SourceError(f"{archive}: not a whole rar archive in one volume; download it again")
        for name, _ in promised:
            _inside(archive, name)
        self._run_programs(archive, folder)
        self._spend(archive, _bytes_below(folder))
        list(_walk(folder, trusted=False))  # refuses links
        if promised and not rar.agrees(promised, folder):
            raise SourceError(
                f"{archive}: its files do not have the checksums it states; download it again or unpack it yourself"
            )

    def _run_programs(self, archive: Path, folder: Path) -> None:
        """Let one installed program after the other try."""
        if not (found := programs.installed()):
            raise SourceError(f"{archive}: to unpack it install {programs.offer()}")
        refusals = []
        for program in found:
            reason = program.unpack(
                archive, folder, watch=lambda: self._refuse_bomb(archive, _bytes_below(folder))
            )
            if reason is None:
                return
            refusals.append(f"{program.name}: {reason}")
            shutil.rmtree(folder)
            folder.mkdir()
        raise SourceError(
            f"{archive}: cannot be unpacked ({'; '.join(refusals)}); download it again, unpack it yourself, "
            f"or install another program: {programs.offer()}"
        )

    def _spend(self, archive: Path, size: int) -> None:
        self._refuse_bomb(archive, size)
        self._budget -= size

    def _refuse_bomb(self, archive: Path, size: int) -> None:
        if size > self._budget:
            raise SourceError(
                f"{archive}: unpacks to more than {RATIO_MAX} times its size, as a decompression bomb does; "
                "if it is sound, unpack it yourself and import the folder"
            )

    def _refuse_clashes(self, source: Path) -> None:
        seen: dict[str, PurePosixPath] = {}
        for member in self.members:
            other = seen.setdefault(str(member.path).casefold(), member.path)
            if other is not member.path:
                raise SourceError(f"{source}: {other} and {member.path} clash; rename one")


class _Headers:
    """A tar's bytes, of which no more are read at once than a header may have: tarfile reads those whole."""

    def __init__(self, file: IO[bytes], archive: Path) -> None:
        self._file, self._archive = file, archive
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > HEADER_MAX:
            raise SourceError(f"{self._archive}: a header of {size:,} bytes; do not trust this archive")
        return self._file.read(size)


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(6)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(magic):
            return cast("IO[bytes]", opener(archive))
    return archive.open("rb")


def copy(member: Member, target: Path) -> None:
    """Write a member's bytes to `target`, whole or not at all; one that is there already is kept."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.unpacked:
        with contextlib.suppress(OSError):  # some file systems have no hard links
            target.hardlink_to(member.unpacked)
            return
    part = target.with_name(target.name + ".part")
    try:
        with member.open() as source, part.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except DAMAGE as error:
        part.unlink(missing_ok=True)
        raise damaged(member, error) from None
    part.replace(target)


def damaged(member: Member, error: Exception) -> SourceError:
    """What to raise when a member cannot be read from its archive."""
    return SourceError(
        f"{member.path}: damaged in its archive ({error}); download it again or unpack it yourself"
    )


def _walk(folder: Path, *, trusted: bool) -> Iterator[Path]:
    """Yield the files below `folder`, sorted. A user's own folder may hold links to files."""
    for directory, folders, files in os.walk(folder):
        links = [name for name in (*folders, *files) if (Path(directory) / name).is_symlink()]
        if links and not trusted:
            raise SourceError(f"{Path(directory) / links[0]}: a link; links are not followed")
        folders[:] = sorted(name for name in folders if not _ignored(PurePosixPath(name)))
        for name in sorted(files):
            path = Path(directory) / name
            if not _ignored(PurePosixPath(name)) and path.is_file():
                yield path


def _inside(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise SourceError(
            f"{archive}: {name!r} would be written outside the data folder; do not trust this archive"
        )
    return path


def _ignored(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part.lower() in IGNORED for part in path.parts)


def _is_archive(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _stem(name: str) -> str:
    suffix = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len)
    return name[: -len(suffix)]


def _bytes_below(folder: Path) -> int:
    total = 0
    for directory, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(directory) / name).lstat().st_size
            except FileNotFoundError:  # renamed by the program that unpacks
                continue
    return total


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _zip_opener(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        try:
            return file.open(info)
        except (OSError, ValueError, RuntimeError) as error:  # at a place that the archive does not have
            raise zipfile.BadZipFile(str(error)) from None

    return opened
