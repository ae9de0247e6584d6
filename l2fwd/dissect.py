"""A packet in one line, or as words: what ``rule_keys`` tells that it shows to a rule."""

import time
from typing import Final

from l2fwd._classify import Classifier
from l2fwd.explain import shown

_HEX_ROW_BYTES: Final = 16
_KEYS: Final = Classifier((), {})


def words_of(packet: bytes) -> dict[str, str]:
    """Return what a packet shows, by the words of a rule; empty below 14 bytes.

    >>> words_of(bytes.fromhex("020000000001" "020000000002" "0806"))["ethertype"]
    'arp'
    """
    key = _KEYS.key(packet, 0)
    return {} if key is None else shown(key)


def line_of(packet: bytes, time_ns: int, queue: int) -> str:
    """Return one line: local time, queue, MACs, tags, ethertype, addresses and ports, length."""
    words = words_of(packet)
    seconds, ns = divmod(time_ns, 1_000_000_000)
    parts = [f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{ns:09} queue {queue}"]
    if words:
        parts[0] += f"  {words['src_mac']} > {words['dst_mac']}"
        if words["vlan"] != "none":
            parts.append(f"vlan {words['vlan']}")
        parts.append(words["ethertype"])
    if "src" in words:
        parts.append(f"{_end(words, 'src', 'sport')} > {_end(words, 'dst', 'dport')}")
        parts.append(words["proto"])
    return ", ".join([*parts, f"length {len(packet)}"])


def _end(words: dict[str, str], address: str, port: str) -> str:
    host = words[address]
    if port not in words:
        return host
    return f"[{host}]:{words[port]}" if ":" in host else f"{host}:{words[port]}"


def hex_lines(data: bytes) -> list[str]:
    """Return the bytes, 16 a line: offset, hex, and what is printable.

    >>> hex_lines(b"GET /")
    ['  0x0000  47 45 54 20 2f                                   GET /']
    """
    lines = []
    for start in range(0, len(data), _HEX_ROW_BYTES):
        row = data[start : start + _HEX_ROW_BYTES]
        text = "".join(chr(each) if 0x20 <= each < 0x7F else "." for each in row)
        lines.append(f"  0x{start:04x}  {row.hex(' '):<47}  {text}")
    return lines
