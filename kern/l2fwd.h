/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Layouts shared with l2fwd/abi.py; a test compares both with the objects' BTF. */
#ifndef L2FWD_H
#define L2FWD_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Per CPU, one record.  The order is DATAPATH_COUNTERS of l2fwd/abi.py. */
struct datapath_counters {
	__u64 redirected_packets; /* handed to an AF_XDP socket */
	__u64 passed_packets;	  /* no socket on the queue: left to the host stack */
};

_Static_assert(sizeof(struct datapath_counters) == 16, "read as u64[2] by l2fwd/bpf.py");

#endif
