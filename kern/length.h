/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* How long a packet is, in one buffer or in several. */
#ifndef L2FWD_LENGTH_H
#define L2FWD_LENGTH_H

#include "l2fwd.h"

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);   /* 0 */
	__type(value, __u32); /* 1: this link's packets may take several buffers */
	__uint(max_entries, 1);
} jumbo SEC(".maps");

/* The kernel is asked only where it must be: the call is a fifth of the shortest way through. */
static __always_inline __u64 packet_length(struct xdp_md *ctx)
{
	__u32 zero = 0, *is_jumbo = bpf_map_lookup_elem(&jumbo, &zero);
	__u64 bytes = (void *)(long)ctx->data_end - (void *)(long)ctx->data;

	if (is_jumbo && *is_jumbo)
		bytes = bpf_xdp_get_buff_len(ctx);
	/* Here and now: clang would keep both pointers until the count is used, and the verifier
	 * take each path of the parser for another state.
	 */
	asm volatile("" : "+r"(bytes));
	return bytes;
}

#endif
