"""Frames out of a capture file, pcap or pcapng; times, names and options are stepped over.

Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

from l2fwd.errors import ConfigError

MAX_BLOCK_BYTES: Final = 16 << 20  # a length above it is damage

_PCAP_MAGICS: Final = (0xA1B2C3D4, 0xA1B23C4D)  # times in microseconds, in nanoseconds
_PCAPNG_MAGIC: Final = b"\x0a\x0d\x0d\x0a"  # begins a section, in both byte orders
_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_INTERFACE, _SIMPLE_PACKET, _PACKET = 1, 3, 6  # types of blocks
_ETHERNET: Final = 1  # the link type


def read_capture(path: str) -> Iterator[tuple[bytes, int]]:
    """Yield each frame of a capture file, and how many bytes it had on the wire.

    Raises
    ------
    ConfigError
        If the file cannot be read, is no capture of Ethernet frames, or is cut or damaged; the
        frames before that have been yielded.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
            for order in "<>":
                if _number(order, magic) in _PCAP_MAGICS:
                    yield from _pcap(file, order)
                    return
            if magic != _PCAPNG_MAGIC:
                raise ValueError("is neither pcap nor pcapng")
            yield from _pcapng(file)
    except OSError as error:
        raise ConfigError(f"capture file {path}: {error.strerror}") from None
    except (ValueError, struct.error, IndexError) as error:
        said = str(error) if type(error) is ValueError else "is damaged: a block is too short"
        raise ConfigError(f"capture file {path} {said}") from None


def _number(order: str, four_bytes: bytes) -> int:
    return int.from_bytes(four_bytes, "little" if order == "<" else "big")


def _take(file: BinaryIO, count: int, may_end: bool = False) -> bytes:
    """Read ``count`` bytes; or none, if the file may end here."""
    if not 0 <= count <= MAX_BLOCK_BYTES:
        raise ValueError(f"is damaged: a block of {count} bytes")
    found = file.read(count)
    if len(found) < count and (found or not may_end):
        raise ValueError(f"is cut: its last block has {len(found)} of {count} bytes")
    return found


def _check_link_type(number: int) -> None:
    if number != _ETHERNET:
        raise ValueError(f"has frames of link type {number}; rules are about Ethernet, 1")


def _pcap(file: BinaryIO, order: str) -> Iterator[tuple[bytes, int]]:
    (link_type,) = struct.unpack(order + "16xI", _take(file, 20))
    _check_link_type(link_type & 0xFFFF)  # the bits above tell of the checksum
    while head := _take(file, 16, may_end=True):
        length, on_wire = struct.unpack(order + "8xII", head)
        yield _take(file, length), on_wire


def _pcapng(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    order, interfaces = "", list[tuple[int, int]]()  # link type, bytes kept of a frame
    head = _PCAPNG_MAGIC + _take(file, 4)
    while head:
        if head[:4] == _PCAPNG_MAGIC:
            order = "<" if _number("<", _take(file, 4)) == _BYTE_ORDER_MAGIC else ">"
            interfaces = []
            _take(file, _number(order, head[4:]) - 12)
        else:
            body = _take(file, _number(order, head[4:]) - 8)[:-4]  # its end is its length again
            yield from _block(_number(order, head[:4]), body, order, interfaces)
        head = _take(file, 8, may_end=True)


def _block(
    kind: int, body: bytes, order: str, interfaces: list[tuple[int, int]]
) -> Iterator[tuple[bytes, int]]:
    if kind == _INTERFACE:
        link_type, kept = struct.unpack_from(order + "HxxI", body)
        interfaces.append((link_type, kept or MAX_BLOCK_BYTES))
    elif kind == _PACKET:
        interface, length, on_wire = struct.unpack_from(order + "I8xII", body)
        _check_link_type(interfaces[interface][0])
        yield struct.unpack_from(f"{length}s", body, 20)[0], on_wire
    elif kind == _SIMPLE_PACKET:
        (on_wire,) = struct.unpack_from(order + "I", body)
        link_type, kept = interfaces[0]
        _check_link_type(link_type)
        yield struct.unpack_from(f"{min(on_wire, kept)}s", body, 4)[0], on_wire
