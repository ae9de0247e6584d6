/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Layouts shared with Python; tests/test_layouts.py compares both by the BTF of the objects. */
#ifndef L2FWD_H
#define L2FWD_H

#include <linux/bpf.h>
#include <linux/types.h>

/* What a packet shows to a rule, as it is on the wire: KEY of l2fwd/rule_keys.py. */
struct packet_key {
	__u32 in_ifindex; /* host byte order */
	__u8 dst_mac[6];
	__u8 src_mac[6];
	__be16 ethertype;  /* after up to two VLAN tags */
	__be16 vlan_outer; /* VLAN id, NO_VLAN if untagged */
	__be16 vlan_inner;
	__u8 proto;
	__u8 ip_version; /* 4, 6, or 0: no well-formed IP header */
	__be16 sport;	 /* ports of first fragments of TCP, UDP, UDP-Lite, SCTP */
	__be16 dport;
	__u8 flags; /* enum key_flag */
	__u8 zero[3];
	__u8 src[16]; /* IPv4 in the first four bytes */
	__u8 dst[16];
};

enum key_flag {
	KEY_HAS_PORTS = 1 << 0,	 /* sport and dport were read */
	KEY_LINK_LOCAL = 1 << 1, /* to 01-80-C2-00-00-0x: only a rule that names it matches */
};

#define NO_VLAN 0xffff /* no VLAN id is that large */

/* Rules are found by a tuple-space search: for each mask, by rank, one hash look-up. */
struct rule_key {
	__u32 generation; /* version of the table: an update fills the next one, then switches */
	__u32 mask_index;
	struct packet_key packet; /* masked */
};

struct rule_mask {
	struct packet_key mask;
	__u32 best_rank; /* of the rules with this mask; masks are sorted by it */
	__u32 zero;
};

enum rule_verdict {
	VERDICT_PASS,
	VERDICT_DROP,
	VERDICT_OUT,
	VERDICT_USER,
};

enum rule_change { /* in this order */
		   CHANGE_DEC_TTL = 1 << 0,
		   CHANGE_SWAP_MAC = 1 << 1,
		   CHANGE_SRC_MAC = 1 << 2,
		   CHANGE_DST_MAC = 1 << 3,
		   CHANGE_POP_VLAN = 1 << 4,
		   CHANGE_PUSH_VLAN = 1 << 5,
};

struct rule_action {
	__u32 rank; /* place in the order of precedence; the least wins */
	__u32 rule; /* key of its counters */
	__u32 out_ifindex;
	__u16 verdict; /* enum rule_verdict */
	__u16 changes; /* enum rule_change */
	__u16 vlan;    /* id to push, host byte order */
	__u8 dst_mac[6];
	__u8 src_mac[6];
	__u16 flags; /* enum action_flag */
};

enum action_flag {
	ACTION_BY_POLICY = 1 << 0,   /* a program decided, not a rule */
	ACTION_NOT_LEARNED = 1 << 1, /* for this packet only */
};

#define MAX_MASKS 64 /* per generation */

/* Found without a call into the kernel: at its hash_key, or less than NEAR_PROBES places on. */
struct near_rule {
	struct rule_key key;
	struct rule_action action;
};

#define NEAR_BITS 12 /* places for both generations */
#define NEAR_PROBES 4
#define NOT_NEAR (~0U)

#define HASHED_WORDS 9			  /* of a rule_key, and of a flow_key */
#define HASH_FACTOR 0x9e3779b97f4a7c15ULL /* odd, without a pattern: 2^64 by the golden ratio */

/* For a link whose packets all get the same action, but link-local ones.  None of it needs the
 * packet_key.
 */
struct link_rule {
	__u32 in_ifindex; /* 0: none */
	struct rule_action action;
};

#define LINK_RULES 64 /* per generation, by ifindex % LINK_RULES */

struct rule_table { /* one per parity of the generation */
	__u32 mask_count;
	__u32 miss_verdict; /* enum rule_verdict */
	__u32 is_near;	    /* its rules are in near_rules, not in rules */
};

struct rule_hits { /* per CPU, one per rule */
	__u64 packets;
	__u64 bytes;
};

/* A flow: packets of one RX queue that no rule can tell apart. */
struct flow_key {
	__u16 queue;
	__u16 mask_slot; /* of flow_masks */
	__u32 zero;
	struct packet_key packet; /* masked */
};

/* Written by user space when learned, then by the one CPU that runs its RX queue.  Found by the
 * hash_key of its key: of two flows with the same hash, the one learned last has the entry.
 */
struct flow {
	struct flow_key key;
	struct rule_action action;
	__u64 packets; /* forwarded, dropped or passed by the entry */
	__u64 bytes;
	__u64 last_seen; /* ns, CLOCK_MONOTONIC_COARSE */
	__u64 wait_for;	 /* packet number, FLOW_NEW or FLOW_SETTLED */
};

#define FLOW_NEW 0
#define FLOW_SETTLED (~0ULL)

#define MAX_FLOW_MASKS 4
#define NO_FLOW_MASK 0xff	     /* in flow_order: a byte per mask, the newest first */
#define FLOW_PATIENCE_NS 100000000LL /* then a flow goes to the kernel, in order or not */

/* Per RX queue, shared with the worker: what went up to it, and what it is done with. */
struct queue_progress {
	__u64 sent_up; /* packets; the next one has this number plus one */
	__u64 pad[7];  /* a cache line for each writer */
	__u64 done;    /* number of the last packet that has left, by the worker */
	__u64 pad2[7];
};

/* Per CPU, one record.  The order is DATAPATH_COUNTERS of l2fwd/abi.py. */
struct datapath_counters {
	__u64 redirected_packets; /* handed to a worker that forwards all, or to another link */
	__u64 passed_packets;	  /* left to the host stack */
	__u64 rule_drops;	  /* a rule or the miss policy said so */
	__u64 no_link_drops;	  /* the rule's link is not in the map */
	__u64 mtu_drops;	  /* longer than the other link takes */
	__u64 change_drops;	  /* could not be changed as the rule says */
	__u64 redirected_bytes;
	__u64 upcall_packets; /* handed to a worker that decides */
};

/* What the NIC knew about a packet, right before its data.  The order is RX_METADATA of
 * l2fwd/records.py.
 */
struct rx_metadata {
	__u64 timestamp_ns; /* by the NIC's clock */
	__u32 hash;
	__u32 hash_type;   /* enum xdp_rss_hash_type of the kernel */
	__be16 vlan_proto; /* of the tag that the NIC took off */
	__u16 vlan_tci;
	__u32 has; /* RX_METADATA_MAGIC, and enum rx_metadata_flag */
};

enum rx_metadata_flag { /* and netdev_xdp_rx_metadata of the kernel */
			RX_HAS_TIMESTAMP = 1 << 0,
			RX_HAS_HASH = 1 << 1,
			RX_HAS_VLAN_TAG = 1 << 2,
};

/* Else what is there are bytes of another packet that had the frame. */
#define RX_METADATA_MAGIC 0x6d657400
#define RX_METADATA_FLAGS 0xff

_Static_assert(sizeof(struct packet_key) == 64, "eight words, masked one by one");
_Static_assert(sizeof(struct rule_key) == 8 * HASHED_WORDS, "a hash key: no padding");
_Static_assert(sizeof(struct rule_mask) == 72, "no padding");
_Static_assert(sizeof(struct rule_action) == 32, "no padding");
_Static_assert(sizeof(struct flow_key) == 8 * HASHED_WORDS, "a hash key: no padding");
_Static_assert(sizeof(struct flow) == 136, "no padding");
_Static_assert(sizeof(struct queue_progress) == 128, "two cache lines");
_Static_assert(sizeof(struct rx_metadata) == 24, "at most 32 bytes, no padding");

typedef __u64 __attribute__((may_alias)) key_word;

/* Of HASHED_WORDS; its highest bits are the best.  The powers are worked out at compile time. */
static inline __attribute__((always_inline)) __u64 hash_key(const void *key)
{
	const key_word *words = key;
	__u64 hash = 0, factor = 1;

#pragma GCC unroll 9
	for (int i = 0; i < HASHED_WORDS; i++) {
		factor *= HASH_FACTOR;
		hash += (words[i] ^ words[i] >> 32) * factor;
	}
	return hash;
}

#endif
