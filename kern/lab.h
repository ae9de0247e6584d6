/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the generator and the sink of the benches agree on; bench/traffic.py packs the same. */
#ifndef L2FWD_LAB_H
#define L2FWD_LAB_H

#include <linux/types.h>

#define LAB_HEADER_BYTES 42 /* Ethernet, IPv4, UDP: restored in every frame */
#define LAB_MAX_SIZES 12
#define LAB_SUB_BUCKETS 16 /* of a power of two */
#define LAB_FIRST_POWER 8  /* all below 2^8 ns is one bucket */
#define LAB_LAST_POWER 34  /* and all from 2^34 ns on, 17 s */
#define LAB_BUCKETS ((LAB_LAST_POWER - LAB_FIRST_POWER) * LAB_SUB_BUCKETS + 2)

/* Behind the header, where it may be unaligned. */
struct lab_stamp {
	__u64 sequence;
	__u64 sent_ns; /* CLOCK_MONOTONIC */
} __attribute__((packed));

struct lab_settings {
	__u64 interval_ns; /* between frames; 0: as fast as they are made */
	__u64 next_ns;	   /* when the next frame is due */
	__u64 limit;	   /* frames to send; 0: no end */
	__u64 sent;
	__u64 later_from; /* frames sent before the interval changes; 0: never */
	__u64 later_interval_ns;
	__u64 changed_ns; /* when it did */
	__u32 flows;	  /* source MACs and IPv4 sources that take turns; 0: as given */
	__u32 next_flow;
	__u32 is_stamped;
	__u32 size_count; /* 0: as given */
	__u32 next_size;
	__u32 given_size;
	__u16 sizes[LAB_MAX_SIZES];	   /* bytes, at most the given size, take turns */
	__u8 header[LAB_HEADER_BYTES + 6]; /* and padding */
};

struct lab_seen {
	__u64 packets;
	__u64 bytes;
	__u64 reordered;   /* stamped, behind a later one of the same CPU */
	__u64 corrupted;   /* stamped, and not what was sent */
	__u64 newest;	   /* sequence + 1 */
	__u64 latency_ns;  /* sum */
	__u64 last_gap_ns; /* when the last frame was sent that did not follow the one before */
	__u64 buckets[LAB_BUCKETS];
};

_Static_assert(sizeof(struct lab_stamp) == 16, "lab_stamp is written into packets");
_Static_assert(sizeof(struct lab_settings) == 152, "bench/traffic.py packs it");

#endif
