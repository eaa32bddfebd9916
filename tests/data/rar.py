"""Write rar archives, versions 5 and 4, with stored members, after RARLAB's technical notes."""

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


def write_4(path: Path, members: Mapping[str, bytes], *, end: bool = True) -> None:
    blocks = [b"Rar!\x1a\x07\x00", _block_4(0x73, 0, bytes(6))]
    for name, data in members.items():
        size, crc = len(data).to_bytes(4, "little"), zlib.crc32(data).to_bytes(4, "little")
        encoded = name.replace("/", "\\").encode()
        fields = size + size + b"\x03" + crc + b"\0\0\x21\x50" + b"\x14\x30"
        fields += len(encoded).to_bytes(2, "little") + (0o100644).to_bytes(4, "little") + encoded
        blocks += [_block_4(0x74, 0x8000, fields), data]
    path.write_bytes(b"".join([*blocks, *([_block_4(0x7B, 0x4000, b"")] if end else [])]))


def _block_4(kind: int, flags: int, fields: bytes) -> bytes:
    rest = bytes([kind]) + flags.to_bytes(2, "little") + (7 + len(fields)).to_bytes(2, "little") + fields
    return (zlib.crc32(rest) & 0xFFFF).to_bytes(2, "little") + rest


def _block(fields: bytes) -> bytes:
    sized = _vint(len(fields)) + fields
    return zlib.crc32(sized).to_bytes(4, "little") + sized


def _vint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
