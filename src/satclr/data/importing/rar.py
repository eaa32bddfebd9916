"""What a rar archive says it holds, to judge before it is unpacked and to compare with what a program made of it.

Some programs unpack what is left of a truncated archive, or a member whose checksum is wrong, without a word;
some rename a member whose path leaves the archive. Block layout after RARLAB's technical notes, versions 4 and 5.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

SIGNATURE_5: Final = b"Rar!\x1a\x07\x01\x00"
SIGNATURE_4: Final = b"Rar!\x1a\x07\x00"
FILE_5, END_5 = 2, 5
EXTRA_5, DATA_5, SPLIT_5 = 0x01, 0x02, 0x18
DIRECTORY_5, MTIME_5, CRC_5 = 0x01, 0x02, 0x04
FILE_4, END_4 = 0x74, 0x7B
SPLIT_4, DIRECTORY_4, LARGE_4, DATA_4 = 0x03, 0xE0, 0x100, 0x8000
UNKNOWN: Final = -1  # of a file whose archive states another checksum than CRC32
HEADER_4: Final = 7  # bytes: checksum, kind, flags, length
NAME_MAX: Final = 1 << 16  # bytes
FILE_HEADER_4: Final = 25  # bytes of a file's header beyond those, up to the size's upper half or the name

Files = list[tuple[str, int]]  # name, CRC32


def files(path: Path) -> Files | None:
    """Name and CRC32 of each file in the archive; None if it is not whole, or one volume of several."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(SIGNATURE_5)) == SIGNATURE_5:
            return _walk_5(file, size)
        file.seek(0)
        return _walk_4(file, size) if file.read(len(SIGNATURE_4)) == SIGNATURE_4 else None


def agrees(promised: Sequence[tuple[str, int]], folder: Path) -> bool:
    """Whether the files in a folder are as many as an archive promised, and have the checksums it states."""
    found = _checksums_below(folder)
    return len(promised) == found.total() and Counter(crc for _, crc in promised if crc != UNKNOWN) <= found


def _checksums_below(folder: Path) -> Counter[int]:
    found: Counter[int] = Counter()
    for directory, _, files in os.walk(folder):
        for name in files:
            crc = 0
            with (Path(directory) / name).open("rb") as file:
                while chunk := file.read(1 << 20):
                    crc = zlib.crc32(chunk, crc)
            found[crc] += 1
    return found


def _walk_5(file: IO[bytes], size: int) -> Files | None:
    found: Files = []
    while file.tell() < size:
        file.seek(4, 1)  # CRC32 of the header
        end = _vint(file) + file.tell()
        kind, flags = _vint(file), _vint(file)
        if kind == END_5:
            return found if end <= size else None
        if flags & EXTRA_5:
            _vint(file)
        data = _vint(file) if flags & DATA_5 else 0
        if kind == FILE_5:
            file_flags, _, _ = _vint(file), _vint(file), _vint(file)  # unpacked size, attributes
            file.seek(4 if file_flags & MTIME_5 else 0, 1)
            if flags & SPLIT_5:
                return None
            crc = int.from_bytes(file.read(4), "little") if file_flags & CRC_5 else UNKNOWN
            _vint(file), _vint(file)  # method, system
            name = file.read(min(_vint(file), NAME_MAX)).decode(errors="replace")
            if not file_flags & DIRECTORY_5:
                found.append((name, crc))
        file.seek(end + data)
    return None


def _walk_4(file: IO[bytes], size: int) -> Files | None:
    found: Files = []
    while (start := file.tell()) < size:
        header = file.read(HEADER_4)
        flags, length = int.from_bytes(header[3:5], "little"), int.from_bytes(header[5:7], "little")
        if len(header) < HEADER_4 or length < HEADER_4:
            return None
        if header[2] == END_4:
            return found
        if flags & DATA_4 or header[2] == FILE_4:
            fields = file.read(FILE_HEADER_4)
            length += int.from_bytes(fields[:4], "little")
            if header[2] == FILE_4:
                if flags & LARGE_4:  # the upper halves of the sizes, packed and unpacked
                    length += int.from_bytes(file.read(8)[:4], "little") << 32
                if flags & SPLIT_4:
                    return None
                # Where the name is kept in Unicode too, that follows a zero byte.
                name = file.read(int.from_bytes(fields[19:21], "little")).partition(b"\0")[0]
                if flags & DIRECTORY_4 != DIRECTORY_4:
                    found.append((name.decode("cp437"), int.from_bytes(fields[9:13], "little")))
        file.seek(min(start + length, size + 1))
    return found if file.tell() == size else None  # version 4 may lack an end


def _vint(file: IO[bytes]) -> int:
    """Seven bits a byte, lowest first; the top bit says that more follow. At the file's end, 0.

    Of the ten bytes that 64 bits take, 56 bits at most count: no file has a longer one to seek in.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        value |= (byte[0] & 0x7F) << shift if byte else 0
        if not byte or byte[0] < 0x80:
            break
    return value & (1 << 56) - 1
