/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What a program has done, per CPU: every verdict has a counter. */
#ifndef L2FWD_COUNTERS_H
#define L2FWD_COUNTERS_H

#include "l2fwd.h"

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* 0 */
	__type(value, struct datapath_counters);
	__uint(max_entries, 1);
} counters SEC(".maps");

/* NULL cannot happen, the array has one entry; the verifier wants it asked. */
static __always_inline struct datapath_counters *find_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

#endif
