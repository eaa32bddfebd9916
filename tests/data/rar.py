"""Rar archives, versions 5 and 4, with stored members, after RARLAB's technical notes."""

import zlib
from collections.abc import Mapping

SIGNATURE = b"Rar!\x1a\x07\x01\x00"
MAIN, FILE, END = 1, 2, 5
HAS_DATA, HAS_CRC, UNIX = 2, 4, 1


def packed(members: Mapping[str, bytes]) -> bytes:
    blocks = [SIGNATURE, _block(_vint(MAIN) + _vint(0) + _vint(0))]
    for name, data in members.items():
        encoded = name.encode()
        fields = [len(data), HAS_CRC, len(data), 0o100644]
        header = _vint(FILE) + _vint(HAS_DATA) + b"".join(map(_vint, fields))
        header += zlib.crc32(data).to_bytes(4, "little")
        header += _vint(0) + _vint(UNIX) + _vint(len(encoded)) + encoded
        blocks += [_block(header), data]
    return b"".join([*blocks, _block(_vint(END) + _vint(0) + _vint(0))])


def packed_4(members: Mapping[str, bytes]) -> bytes:
    blocks = [b"Rar!\x1a\x07\x00", _block_4(0x73, 0, bytes(6))]
    for name, data in members.items():
        size, crc = len(data).to_bytes(4, "little"), zlib.crc32(data).to_bytes(4, "little")
        encoded = name.replace("/", "\\").encode()
        fields = size + size + b"\x03" + crc + b"\0\0\x21\x50" + b"\x14\x30"
        fields += len(encoded).to_bytes(2, "little") + (0o100644).to_bytes(4, "little") + encoded
        blocks += [_block_4(0x74, 0x8000, fields), data]
    return b"".join([*blocks, _block_4(0x7B, 0x4000, b"")])


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
