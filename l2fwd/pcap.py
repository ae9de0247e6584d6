"""Capture files, pcap and pcapng: frames out of one, and packets into one, with times in ns.

Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.
"""

import struct
from collections.abc import Iterator
from typing import IO, BinaryIO, Final

from l2fwd.errors import ConfigError

MAX_BLOCK_BYTES: Final = 16 << 20  # a length above it is damage

_PCAP_MAGICS: Final = (0xA1B2C3D4, 0xA1B23C4D)  # times in microseconds, in nanoseconds
_PCAPNG_MAGIC: Final = b"\x0a\x0d\x0d\x0a"  # begins a section, in both byte orders
_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_INTERFACE, _SIMPLE_PACKET, _PACKET = 1, 3, 6  # types of blocks
_ETHERNET: Final = 1  # the link type
_IF_NAME, _IF_TSRESOL, _EPB_QUEUE = 2, 9, 6  # options of an interface, of a packet
FORMATS: Final = ("pcap", "pcapng")
MAX_SNAPLEN: Final = 262144  # bytes; libpcap takes no more


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


class CaptureWriter:
    """Writes packets to a capture file.

    Parameters
    ----------
    file : binary file
        Open for writing; stays the caller's.
    kind : str
        ``pcap`` (with nanoseconds) or ``pcapng``, which also says link and queue.
    snaplen : int
        Bytes kept of each packet; 0 for all.
    link : str

    Raises
    ------
    ConfigError
        If ``kind`` or ``snaplen`` cannot be.
    OSError
    """

    def __init__(
        self, file: IO[bytes], kind: str = "pcapng", *, snaplen: int = 0, link: str = ""
    ) -> None:
        if kind not in FORMATS:
            raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {kind!r}")
        if not 0 <= snaplen <= MAX_SNAPLEN:
            raise ConfigError(f"snaplen must be in [0, {MAX_SNAPLEN}] bytes, got {snaplen}")
        self._file = file
        self._is_pcap = kind == "pcap"
        self._kept = snaplen or MAX_SNAPLEN
        if self._is_pcap:
            head = struct.pack(
                "=IHHiIII", _PCAP_MAGICS[1], 2, 4, 0, 0, self._kept, _ETHERNET
            )  # version 2.4, UTC
        else:
            section = struct.pack("=IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)  # version 1.0, any length
            options = _option(_IF_NAME, link.encode()) + _option(_IF_TSRESOL, b"\x09")  # 10^-9 s
            interface = struct.pack("=HHI", _ETHERNET, 0, self._kept) + options + _option(0)
            head = _framed(_number("<", _PCAPNG_MAGIC), section) + _framed(_INTERFACE, interface)
        file.write(head)

    def write(self, packet: bytes, time_ns: int, queue: int = 0) -> None:
        """Write one packet, received ``time_ns`` ns after 1970."""
        data = packet[: self._kept]
        if self._is_pcap:
            seconds, ns = divmod(time_ns, 1_000_000_000)
            head = struct.pack("=IIII", seconds, ns, len(data), len(packet))
            self._file.write(head + data)
            return
        high, low = divmod(time_ns, 1 << 32)
        head = struct.pack("=IIIII", 0, high, low, len(data), len(packet))
        options = _option(_EPB_QUEUE, struct.pack("=I", queue)) + _option(0)
        self._file.write(_framed(_PACKET, head + _padded(data) + options))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes = b"") -> bytes:
    return struct.pack("=HH", code, len(value)) + _padded(value)


def _framed(kind: int, body: bytes) -> bytes:
    """Make a block of pcapng: its length is at both ends."""
    length = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + length + body + length
