"""Words that more than one kind of value is written with: link names and MAC addresses."""

import re
from typing import Final

from l2fwd.errors import ConfigError

MAX_IFNAME: Final = 15  # IFNAMSIZ, less the terminating zero

_MAC: Final = re.compile(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}")
_NOT_IN_IFNAME: Final = re.compile(r"[/:%\s\x00-\x1f]")


def parse_any_mac(text: str, name: str) -> bytes:
    """Return the six bytes of a MAC address, also of a group or of zero.

    >>> parse_any_mac("01:80:c2:00:00:0e", "dst_mac").hex()
    '0180c200000e'
    """
    if not _MAC.fullmatch(text):
        raise ConfigError(f"{name} must be six hex bytes like 02:00:00:00:00:01, got {text!r}")
    return bytes.fromhex(text.replace("-", "").replace(":", ""))


def parse_mac(text: str, name: str) -> bytes:
    """Return the six bytes of a unicast MAC address.

    >>> parse_mac("00:00:11:22:33:44", "set_dst_mac").hex()
    '000011223344'
    """
    mac = parse_any_mac(text, name)
    check_unicast(mac, name)
    return mac


def check_unicast(mac: bytes, name: str) -> None:
    """Refuse what no single station can have as its address."""
    if mac[0] & 1 or not any(mac):
        raise ConfigError(
            f"{name} must be a unicast address that is not zero, got '{mac.hex(':')}'"
        )


def check_ifname(name: str, field: str = "link name") -> None:
    """Refuse what cannot be the name of a link (``dev_valid_name``)."""
    if not 1 <= len(name.encode("utf-8", "replace")) <= MAX_IFNAME:
        raise ConfigError(f"{field} must have 1 to {MAX_IFNAME} bytes, got {name!r}")
    if name in (".", "..") or _NOT_IN_IFNAME.search(name) or not name.isprintable():
        raise ConfigError(f"{field} must not hold '/', ':', '%' or white space, got {name!r}")
