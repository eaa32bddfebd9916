"""Write a RAR 5 archive with stored members, after RARLAB's description of the format."""

import zlib
from collections.abc import Mapping
from pathlib import Path

SIGNATURE = b"Rar!\x1a\x07\x01\x00"
MAIN, FILE, END = 1, 2, 5
HAS_DATA = 2
HAS_CRC = 4
UNIX = 1


def write(path: Path, members: Mapping[str, bytes]) -> None:
    blocks = [SIGNATURE, _block(_vint(MAIN) + _vint(0) + _vint(0))]
    for name, data in members.items():
        encoded = name.encode()
        fields = [len(data), HAS_CRC, len(data), 0o100644]
        header = _vint(FILE) + _vint(HAS_DATA) + b"".join(map(_vint, fields))
        header += zlib.crc32(data).to_bytes(4, "little")
        header += _vint(0) + _vint(UNIX) + _vint(len(encoded)) + encoded
        blocks += [_block(header), data]
    path.write_bytes(b"".join([*blocks, _block(_vint(END) + _vint(0) + _vint(0))]))


def _block(fields: bytes) -> bytes:
    sized = _vint(len(fields)) + fields
    return zlib.crc32(sized).to_bytes(4, "little") + sized


def _vint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
