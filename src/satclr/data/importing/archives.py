"""Unpack downloads safely: zip and tar with Python, rar, 7z and tar.zst with libarchive.

In: a folder or an archive, archives inside archives too. Out: its files as `Member`s on disk. No member leaves its
folder, none is a link, and what is unpacked stays within a multiple of what was downloaded.
"""

import errno
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Final

from satclr import files, progress

# Images hardly compress and label tables some fifty times; a decompression bomb does thousands of times.
RATIO_MAX: Final = 100
SLACK_BYTES: Final = 64 << 20
RESERVE_BYTES: Final = 256 << 20  # of disk space left free
DEPTH_MAX: Final = 3

SUFFIXES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".rar", ".7z")
IGNORED: Final = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
# What a file that libarchive reads starts with, its format and its compression. Not all that libarchive knows: some
# formats name other files of this machine, some filters run programs.
FORMATS: Final = {
    b"Rar!\x1a\x07\x00": ("rar", "none"),
    b"Rar!\x1a\x07\x01": ("rar5", "none"),
    b"7z\xbc\xaf\x27\x1c": ("7zip", "none"),
    b"\x28\xb5\x2f\xfd": ("tar", "zstd"),
}


Files = Iterator[tuple[str, bool, Iterable[bytes]]]  # name, whether it is a plain file, content


class SourceError(ValueError):
    """A download that cannot be imported: bad input, exit code 2."""


@dataclass(frozen=True)
class Member:
    """One file of a download. path: its place in the download; file: on disk; unpacked: whether we wrote it there."""

    path: PurePosixPath
    file: Path
    unpacked: bool

    @property
    def shown(self) -> str:
        """The file as its user knows it: not by its place among the unpacked ones."""
        return str(self.path if self.unpacked else self.file)


def members(source: Path, scratch: Path) -> list[Member]:
    """The files of a folder or archive, sorted; archives are unpacked into `scratch`, unless an earlier run did.

    Raises `SourceError` for a missing source, a damaged or encrypted archive, a path that leaves it, a link, a
    decompression bomb, or a missing system library; `files.WriteError` where the disk is full.
    """
    if not source.exists():
        raise SourceError(f"{source}: no such file or folder")
    if source.is_file() and not _suffix(source):
        raise SourceError(f"{source}: neither a folder nor an archive ({', '.join(SUFFIXES)})")
    archives = [path for path in _walk(source) if _suffix(path)] if source.is_dir() else [source]
    limit = [SLACK_BYTES + RATIO_MAX * sum(path.stat().st_size for path in archives)]
    found: list[Member] = []
    queue = [(source, PurePosixPath(), 0)]
    for number, (path, inside, depth) in enumerate(queue):  # grows while it is read
        if path.is_dir():
            for file in _walk(path):
                place = inside / file.relative_to(path).as_posix()
                if _suffix(file):
                    queue.append((file, place, depth))
                else:
                    found.append(Member(place, file, unpacked=depth > 0))
            continue
        if depth >= DEPTH_MAX:
            raise SourceError(f"{inside}: an archive {depth} archives deep; unpack it yourself")
        stem = path.name[: -len(_suffix(path))]
        folder = scratch / f"{number:07}-{stem}"
        if not folder.exists():
            _unpack(path, folder, limit)
        queue.append((folder, inside.with_name(stem) if inside.name else inside, depth + 1))
    return sorted(found, key=lambda member: member.path)


def copy(member: Member, target: Path) -> None:
    """Write a member to `target`, completely or not at all."""
    with complete(target) as part:
        if member.unpacked:
            with suppress(OSError):  # some file systems have no hard links
                part.hardlink_to(member.file)
                return
        shutil.copyfile(member.file, part)


@contextmanager
def complete(target: Path) -> Iterator[Path]:
    """Yield a temporary file that becomes `target` when the block succeeds (no fsync: there are many tiles)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = files.part_of(target)
    part.unlink(missing_ok=True)
    yield part
    part.replace(target)


def require_space(folder: Path, size: int = 0) -> None:
    """Raise `files.WriteError` unless the disk has room for `size` bytes and some in reserve."""
    free = shutil.disk_usage(folder).free
    if size + RESERVE_BYTES > free:
        needed = f"{(size + RESERVE_BYTES) / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
        raise files.WriteError(errno.ENOSPC, f"{needed}; free some space and run the same command again", folder)


def _unpack(archive: Path, folder: Path, limit: list[int]) -> None:
    """Write the files of `archive` below `folder`; `limit` holds the number of bytes that may still be written."""
    part = files.part_of(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    progress.say(f"unpack {archive.name}")
    name = "its start"
    try:
        for name, plain, chunks in READERS.get(_suffix(archive), _tar)(archive):
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
                raise SourceError(f"{archive}: {name!r} would be written outside its folder; do not trust it")
            if _is_ignored(path):
                continue
            if not plain:
                raise SourceError(f"{archive}: {name} is a link or a special file, which are not unpacked")
            require_space(part)
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            with (part / path).open("xb") as file:
                for chunk in chunks:
                    limit[0] -= len(chunk)
                    if limit[0] < 0:
                        bomb = f"unpacks to more than {RATIO_MAX} times its size, like a decompression bomb"
                        raise SourceError(f"{archive}: {bomb}; if you trust it, unpack it yourself")
                    file.write(chunk)
    except Exception as error:  # whatever a damaged archive raises
        if isinstance(error, SourceError) or (isinstance(error, OSError) and error.errno in files.FULL):
            raise
        remedy = "download it again or unpack it yourself"
        raise SourceError(f"{archive}: damaged at {name} ({error}); {remedy}") from error
    part.rename(folder)


def _zip(archive: Path) -> Files:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.flag_bits & 1:
                raise SourceError(f"{archive}: {info.filename} is encrypted; unpack it yourself")
            if not info.is_dir():
                plain = not stat.S_ISLNK(info.external_attr >> 16)
                with file.open(info) as stream:
                    yield info.filename, plain, iter(partial(stream.read, 1 << 20), b"")


def _tar(archive: Path) -> Files:
    with tarfile.open(archive) as file:
        for info in file:
            if not info.isdir():
                stream = file.extractfile(info) if info.isreg() else None
                yield (info.name, stream is not None, iter(partial(stream.read, 1 << 20), b"") if stream else ())


def _libarchive(archive: Path) -> Files:
    try:
        import libarchive  # type: ignore[import-untyped]
    except (ImportError, OSError, AttributeError, TypeError):  # whatever ctypes raises without the library
        remedy = "`apt install libarchive13` or `brew install libarchive`, or unpack it yourself"
        raise SourceError(f"{archive}: needs the system library libarchive; {remedy}") from None
    with archive.open("rb") as file:
        start = file.read(8)
    known = [value for magic, value in FORMATS.items() if start.startswith(magic)]
    if not known:
        raise ValueError("neither rar, 7z nor zstd")
    with libarchive.file_reader(str(archive), *known[0]) as entries:
        for entry in entries:
            if not entry.isdir:
                yield entry.pathname, entry.isreg and not entry.islnk, entry.get_blocks(1 << 16)


READERS: Final = {".zip": _zip, ".rar": _libarchive, ".7z": _libarchive, ".tar.zst": _libarchive}


def _walk(folder: Path) -> list[Path]:
    """The files below `folder`, sorted. A user's own folder may contain links to files."""
    paths = sorted(folder.rglob("*"))
    return [path for path in paths if path.is_file() and not _is_ignored(path.relative_to(folder))]


def _is_ignored(path: PurePath) -> bool:
    return any(part.startswith(".") or part.lower() in IGNORED for part in path.parts)


def _suffix(path: Path) -> str:
    """An archive's suffix in lower case, empty for other files."""
    return max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")
