"""Offloads, driver, channels and steering of a link, over the ethtool ioctls.

Made here, not by pyroute2: that lacks the driver's name, and takes the kernel's "changed, but
not as wished" (ETHTOOL_F_WISH) for a missing feature.  A socket per call, in the network
namespace of the calling thread.
"""

import ctypes
import difflib
import errno
import fcntl
import fnmatch
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from l2fwd.errors import ConfigError, KernelError, UnsupportedError, kernel_error
from l2fwd.words import check_ifname

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL: Final = 0x8946
_GSET: Final = 0x01
_GDRVINFO: Final = 0x03
_GRINGPARAM: Final = 0x10
_GPAUSEPARAM: Final = 0x12
_GSTRINGS: Final = 0x1B
_GRXFH: Final = 0x29
_SRXFH: Final = 0x2A
_GSSET_INFO: Final = 0x37
_GRXFHINDIR: Final = 0x38
_SRXFHINDIR: Final = 0x39
_GFEATURES: Final = 0x3A
_SFEATURES: Final = 0x3B
_GCHANNELS: Final = 0x3C
_WORD: Final = 0xFFFFFFFF  # features come in blocks of 32
_SS_FEATURES: Final = 4  # string set: the names of the features
_STRING_BYTES: Final = 32  # ETH_GSTRING_LEN
_DRVINFO_BYTES: Final = 196  # sizeof(struct ethtool_drvinfo)
_CHANNELS: Final = struct.Struct("9I")  # struct ethtool_channels
_RINGS: Final = struct.Struct("9I")  # struct ethtool_ringparam
_PAUSE: Final = struct.Struct("4I")  # struct ethtool_pauseparam
_SETTINGS: Final = struct.Struct("12xH14xH14x")  # struct ethtool_cmd: speed, speed_hi
_HASH: Final = struct.Struct("=2IQ")  # struct ethtool_rxnfc, what these two commands look at
_NO_SPEED: Final = 0xFFFFFFFF  # SPEED_UNKNOWN
UDP_V4_FLOW: Final = 0x02
# RXH_IP_SRC, RXH_IP_DST, RXH_L4_B_0_1, RXH_L4_B_2_3: addresses and ports
ADDRESSES_AND_PORTS: Final = 0xF0

# ethtool(8) has names of its own for some features, and for groups of them.
_FEATURE_GROUPS: Final = {
    "rx-checksumming": "rx-checksum",
    "tx-checksumming": "tx-checksum-*",
    "scatter-gather": "tx-scatter-gather*",
    "tcp-segmentation-offload": "tx-tcp*-segmentation",
    "generic-segmentation-offload": "tx-generic-segmentation",
    "generic-receive-offload": "rx-gro",
    "large-receive-offload": "rx-lro",
    "rx-vlan-offload": "rx-vlan-hw-parse",
    "tx-vlan-offload": "tx-vlan-hw-insert",
}


def features(ifname: str) -> dict[str, bool]:
    """Return which offloads of a link are on.

    Both vocabularies are there: the kernel's (``rx-gro``) and ethtool's, whose names may
    stand for several (``tx-checksumming`` is on while any ``tx-checksum-*`` is).
    """
    with _ethtool_socket() as sock:
        state = _feature_state(sock, ifname)
    names = (*state, *_FEATURE_GROUPS)
    return {name: any(feature.is_on for feature in _members(name, state)) for name in names}


def set_features(ifname: str, wanted: Mapping[str, bool]) -> None:
    """Turn offloads of a link on or off; names as in :func:`features`.

    Raises
    ------
    ConfigError
        If there is no feature of that name.
    UnsupportedError
        If the driver keeps one as it is.
    """
    with _ethtool_socket() as sock:
        state = _feature_state(sock, ifname)
        valid = requested = 0  # bit masks over all features
        for name, is_on in wanted.items():
            mask = sum(1 << feature.bit for feature in _members(name, state) if feature.is_free)
            valid |= mask
            requested |= mask if is_on else 0
        words = max(feature.bit for feature in state.values()) // 32 + 1
        request = struct.pack("2I", _SFEATURES, words) + b"".join(
            # struct ethtool_set_features_block
            struct.pack("2I", valid >> shift & _WORD, requested >> shift & _WORD)
            for shift in range(0, 32 * words, 32)
        )
        _ethtool(sock, ifname, request, "set features of")
    now = features(ifname)
    kept = [
        f"{name} {'off' if is_on else 'on'}" for name, is_on in wanted.items() if now[name] != is_on
    ]
    if kept:
        raise UnsupportedError(f"set features of {ifname}: the driver keeps {', '.join(kept)}")


class _Feature(NamedTuple):
    name: str
    bit: int
    is_free: bool  # neither the driver nor the kernel keeps it as it is
    is_on: bool


def _members(name: str, state: Mapping[str, _Feature]) -> list[_Feature]:
    """Return the features behind a name of either vocabulary."""
    pattern = _FEATURE_GROUPS.get(name)
    if pattern is not None:
        return [state[member] for member in fnmatch.filter(state, pattern)]
    if name in state:
        return [state[name]]
    close = difflib.get_close_matches(name, [*state, *_FEATURE_GROUPS], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"there is no feature {name!r}{hint}")


def _feature_state(sock: socket.socket, ifname: str) -> dict[str, _Feature]:
    check_ifname(ifname)
    names = _feature_names(sock, ifname)
    words = -(-len(names) // 32)
    request = struct.pack("2I", _GFEATURES, words).ljust(8 + 16 * words, b"\0")
    answer = _ethtool(sock, ifname, request, "read features of")
    # struct ethtool_get_features_block: available, requested, active, never_changed
    blocks = list(struct.iter_unpack("4I", answer[8:]))
    state = {}
    for bit, name in enumerate(names):
        available, _, active, never_changed = (word >> bit % 32 & 1 for word in blocks[bit // 32])
        if name:  # some bits are retired and nameless
            state[name] = _Feature(name, bit, bool(available & ~never_changed), bool(active))
    return state


def _feature_names(sock: socket.socket, ifname: str) -> list[str]:
    """Return the kernel's names; a feature's place in the list is its bit."""
    request = struct.pack("=2IQI", _GSSET_INFO, 0, 1 << _SS_FEATURES, 0)
    answer = _ethtool(sock, ifname, request, "read features of")
    (count,) = struct.unpack_from("I", answer, 16)
    request = struct.pack("3I", _GSTRINGS, _SS_FEATURES, count)
    request = request.ljust(12 + _STRING_BYTES * count, b"\0")
    strings = _ethtool(sock, ifname, request, "read features of")[12:]
    slots = (strings[i : i + _STRING_BYTES] for i in range(0, len(strings), _STRING_BYTES))
    return [slot.partition(b"\0")[0].decode() for slot in slots]


def driver(ifname: str) -> str:
    """Return the name of a link's driver, or an empty string."""
    return _driver_text(ifname, 4)


def bus_info(ifname: str) -> str:
    """Return where a link's device is, as ``0000:03:00.0``; or an empty string."""
    return _driver_text(ifname, 100)


def firmware(ifname: str) -> str:
    """Return the version of what runs on a link's NIC, or an empty string."""
    return _driver_text(ifname, 68)


def _driver_text(ifname: str, offset: int) -> str:
    """Return 32 bytes of struct ethtool_drvinfo as text."""
    request = struct.pack("I", _GDRVINFO).ljust(_DRVINFO_BYTES, b"\0")
    with suppress(KernelError), _ethtool_socket() as sock:
        answer = _ethtool(sock, ifname, request, "read driver of")
        return answer[offset : offset + 32].partition(b"\0")[0].decode()
    return ""


def queue_counts(ifname: str) -> tuple[int, int] | None:
    """Return RX and TX channels in use, or None where the driver does not tell."""
    fields = _fields(ifname, _GCHANNELS, _CHANNELS, "read channels of")
    if fields is not None:
        *_, rx, tx, _other, combined = fields
        if rx + combined and tx + combined:
            return rx + combined, tx + combined
    return None


def rx_ring_size(ifname: str) -> int:
    """Return the slots of each RX ring of the NIC, or 0 where the driver does not tell."""
    return ring_sizes(ifname)[0]


def ring_sizes(ifname: str) -> tuple[int, int]:
    """Return the slots of each RX and TX ring of the NIC, 0 where the driver does not tell."""
    _, *fields = _fields(ifname, _GRINGPARAM, _RINGS, "read rings of") or [0] * 9
    # after the most there can be of each kind: rx, rx_mini, rx_jumbo, tx
    return fields[4], fields[7]


def speed(ifname: str) -> int:
    """Return the speed of a link in Mbit/s, or 0 where it is not known, or has no carrier."""
    low, high = _fields(ifname, _GSET, _SETTINGS, "read speed of") or (0, 0)
    megabits = high << 16 | low
    return 0 if megabits == _NO_SPEED else megabits


def pause_frames(ifname: str) -> tuple[bool, bool] | None:
    """Tell whether a NIC heeds pause frames, and sends them; None where the driver does not."""
    fields = _fields(ifname, _GPAUSEPARAM, _PAUSE, "read pause of")
    return (bool(fields[2]), bool(fields[3])) if fields else None


def rss_table(ifname: str) -> list[int]:
    """Return which queue each part of the hashes goes to; empty where the NIC has no such table."""
    with suppress(KernelError), _ethtool_socket() as sock:
        request = struct.pack("2I", _GRXFHINDIR, 0)
        answer = _ethtool(sock, ifname, request, "read RSS table of")
        (size,) = struct.unpack_from("I", answer, 4)
        request = struct.pack("2I", _GRXFHINDIR, size).ljust(8 + 4 * size, b"\0")
        answer = _ethtool(sock, ifname, request, "read RSS table of")
        return list(struct.unpack_from(f"{size}I", answer, 8))
    return []


def set_rss_table(ifname: str, queues: Sequence[int]) -> None:
    """Say which queue each part of the hashes goes to; nothing: as the driver has it at first.

    Raises
    ------
    KernelError
        EINVAL if a queue is not there, or the table has another size.
    """
    request = struct.pack(f"{2 + len(queues)}I", _SRXFHINDIR, len(queues), *queues)
    with _ethtool_socket() as sock:
        _ethtool(sock, ifname, request, "set RSS table of")


def hash_fields(ifname: str, flow_type: int) -> int | None:
    """Return what the NIC hashes of such packets, as RXH_* bits; None where it does not tell."""
    with suppress(KernelError), _ethtool_socket() as sock:
        request = _HASH.pack(_GRXFH, flow_type, 0)
        answer = _ethtool(sock, ifname, request, "read hash fields of")
        return int(_HASH.unpack(answer)[2])
    return None


def set_hash_fields(ifname: str, flow_type: int, fields: int) -> None:
    """Say what the NIC hashes of such packets.

    Raises
    ------
    KernelError
        EINVAL or EOPNOTSUPP if the driver cannot.
    """
    with _ethtool_socket() as sock:
        _ethtool(sock, ifname, _HASH.pack(_SRXFH, flow_type, fields), "set hash fields of")


def _fields(
    ifname: str, command: int, layout: struct.Struct, operation: str
) -> tuple[int, ...] | None:
    """Return what a driver fills in, or None where it does not know the command."""
    with suppress(KernelError), _ethtool_socket() as sock:
        request = struct.pack("I", command).ljust(layout.size, b"\0")
        return layout.unpack(_ethtool(sock, ifname, request, operation))
    return None


def _ethtool_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _ethtool(sock: socket.socket, ifname: str, request: bytes, operation: str) -> bytes:
    """Make one ioctl; return the request as the kernel filled it."""
    data = ctypes.create_string_buffer(request, len(request))
    # struct ifreq: the name, then a union of 24 bytes that here holds a pointer
    ifreq = struct.pack("16sP16x", ifname.encode(), ctypes.addressof(data))
    try:
        fcntl.ioctl(sock, _SIOCETHTOOL, ifreq)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise ConfigError(
                f"link {ifname} does not exist; `ip link show` lists the links"
            ) from error
        raise kernel_error(error.errno or 0, operation, ifname) from error
    return data.raw
