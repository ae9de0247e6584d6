"""Numbers and layouts shared with the kernel and with ``kern/l2fwd.h``.

Our own copies: the headers of a distribution are often older than the kernel it runs, and
what they lack is found out at run time.  Source: linux/if_xdp.h, linux/if_link.h.
"""

from typing import Final

# socket(2) and setsockopt(2)
AF_XDP: Final = 44
SOL_XDP: Final = 283
XDP_MMAP_OFFSETS: Final = 1
XDP_TX_RING: Final = 3
XDP_STATISTICS: Final = 7
XDP_OPTIONS: Final = 8
XDP_MAX_TX_SKB_BUDGET: Final = 9  # TX descriptors per sendto in copy mode

XDP_PGOFF_TX_RING: Final = 0x80000000  # offset in bytes for mmap(2)

# sockaddr_xdp.sxdp_flags
XDP_SHARED_UMEM: Final = 1 << 0
XDP_COPY: Final = 1 << 1
XDP_ZEROCOPY: Final = 1 << 2
XDP_USE_NEED_WAKEUP: Final = 1 << 3
XDP_USE_SG: Final = 1 << 4  # a packet may take several frames; since Linux 6.6

XDP_UMEM_UNALIGNED_CHUNK_FLAG: Final = 1 << 0  # xdp_umem_reg.flags
XDP_PKT_CONTD: Final = 1 << 0  # xdp_desc.options: the packet goes on in the next descriptor
UNALIGNED_OFFSET_SHIFT: Final = 48  # XSK_UNALIGNED_BUF_OFFSET_SHIFT
COPY_MODE_FRAGMENTS: Final = 18  # MAX_SKB_FRAGS + 1, as the kernel is built by default

XDP_OPTIONS_ZEROCOPY: Final = 1 << 0

TX_METADATA_BYTES: Final = 32  # struct tx_metadata of _metadata.pxd

XDP_PACKET_HEADROOM: Final = 256  # bytes the kernel keeps before each packet it writes
MIN_TX_SKB_BUDGET: Final = 32  # TX_BATCH_SIZE in net/xdp/xsk.c
MAX_RING_SIZE: Final = 1 << 24  # slots; a vmalloc of the kernel bounds it lower

# IFLA_XDP_ATTACHED
XDP_ATTACHED_NATIVE: Final = 1
XDP_ATTACHED_SKB: Final = 2
XDP_ATTACHED_OFFLOAD: Final = 3

# bpf_link_create flags
XDP_FLAGS_SKB_MODE: Final = 1 << 1
XDP_FLAGS_DRV_MODE: Final = 1 << 2
XDP_FLAGS_HW_MODE: Final = 1 << 3

ETHERNET_HEADER_BYTES: Final = 14
ETHERNET_MTU: Final = 1500  # up to here every driver has a packet in one buffer
VLAN_TAG_BYTES: Final = 4

PROGRAM_PREFIX: Final = "l2fwd_"  # every program of kern/ starts with it

# struct xdp_statistics: 24 bytes until Linux 5.9, then 48.
STATISTICS_FIELDS: Final = (
    "rx_dropped",
    "rx_invalid_descs",
    "tx_invalid_descs",
    "rx_ring_full",
    "rx_fill_ring_empty_descs",
    "tx_ring_empty_descs",
)

# struct datapath_counters in kern/l2fwd.h, per CPU.
DATAPATH_COUNTERS: Final = (
    "redirected_packets",
    "passed_packets",
    "rule_drops",
    "no_link_drops",
    "mtu_drops",
    "change_drops",
    "redirected_bytes",
    "upcall_packets",
)

# enum question_kind in kern/answer.h: what is answered, in the order of the counters.
ANSWER_KINDS: Final = ("echo4", "echo6", "arp", "nd")
# enum echo_flag in kern/echo.bpf.c.
ECHO_FLAGS: Final = {"any_address": 1 << 0, "in_kernel": 1 << 1, "redirect": 1 << 2}

# struct sample_counters in kern/sample.bpf.c, per CPU and RX queue.
SAMPLE_COUNTERS: Final = ("passed_packets", "redirected_packets")

VERDICTS: Final = {"pass": 0, "drop": 1, "out": 2, "user": 3}  # enum rule_verdict
CHANGES: Final = {  # enum rule_change, in the order of application
    "dec_ttl": 1 << 0,
    "swap_mac": 1 << 1,
    "set_src_mac": 1 << 2,
    "set_dst_mac": 1 << 3,
    "pop_vlan": 1 << 4,
    "push_vlan": 1 << 5,
}
