"""The structs of ``kern/l2fwd.h`` as numpy dtypes; a test holds them against the objects' BTF."""

from enum import IntFlag
from typing import Final

import numpy as np

# What a packet shows to a rule: struct packet_key.
KEY: Final = np.dtype(
    [
        ("in_ifindex", "=u4"),
        ("dst_mac", "u1", 6),
        ("src_mac", "u1", 6),
        ("ethertype", ">u2"),
        ("vlan_outer", ">u2"),
        ("vlan_inner", ">u2"),
        ("proto", "u1"),
        ("ip_version", "u1"),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("flags", "u1"),
        ("zero", "u1", 3),
        ("src", "u1", 16),
        ("dst", "u1", 16),
    ]
)

# What happens to it: struct rule_action.
ACTION: Final = np.dtype(
    [
        ("rank", "=u4"),
        ("rule", "=u4"),
        ("out_ifindex", "=u4"),
        ("verdict", "=u2"),
        ("changes", "=u2"),
        ("vlan", "=u2"),
        ("dst_mac", "u1", 6),
        ("src_mac", "u1", 6),
        ("flags", "=u2"),
    ]
)
BY_POLICY: Final = 1 << 0  # enum action_flag
NOT_LEARNED: Final = 1 << 1

# struct flow_key and struct flow; the flow table is a map of hash_key(flow_key) to flow
FLOW_KEY: Final = np.dtype(
    [("queue", "=u2"), ("mask_slot", "=u2"), ("zero", "=u4"), ("packet", KEY)]
)
FLOW: Final = np.dtype(
    [
        ("key", FLOW_KEY),
        ("action", ACTION),
        ("packets", "=u8"),
        ("bytes", "=u8"),
        ("last_seen", "=u8"),
        ("wait_for", "=u8"),
    ]
)
PROGRESS_BYTES: Final = 128  # struct queue_progress
PROGRESS_DONE: Final = 64  # offset of its member done

# What a policy is asked about: struct Packet in _classify.pxd.
PACKET: Final = np.dtype([("addr", "=u8"), ("length", "=u4"), ("more", "=u4"), ("key", KEY)])

# What the NIC knew about a packet, as written in front of it: struct rx_metadata.
RX_METADATA: Final = np.dtype(
    [
        ("timestamp_ns", "=u8"),
        ("hash", "=u4"),
        ("hash_type", "=u4"),
        ("vlan_proto", ">u2"),
        ("vlan_tci", "=u2"),
        ("has", "=u4"),
    ]
)

# When a packet was sent, as XdpSocket.timestamps() tells it.
TX_TIMESTAMP: Final = np.dtype([("packet", "=u8"), ("timestamp_ns", "=u8")])


class RxHas(IntFlag):
    """Which columns of a received packet's metadata are there: enum rx_metadata_flag."""

    TIMESTAMP = 1 << 0
    HASH = 1 << 1
    VLAN_TAG = 1 << 2


class HashType(IntFlag):
    """What a NIC's hash is over: enum xdp_rss_hash_type of the kernel; 0 where it does not tell."""

    IPV4 = 1 << 0
    IPV6 = 1 << 1
    IPV6_EXTENSIONS = 1 << 2
    L4 = 1 << 3
    TCP = 1 << 4
    UDP = 1 << 5
    SCTP = 1 << 6
    IPSEC = 1 << 7
    ICMP = 1 << 8
