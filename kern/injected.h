/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Packets that user space gives back to the host.  Generic XDP sees them once more. */
#ifndef L2FWD_INJECTED_H
#define L2FWD_INJECTED_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

struct injected_packet {
	__u32 ifindex; /* 0: none */
	__u32 length;
};

/* The host's side of an injection runs on the same CPU, right after inject.bpf.c. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* 0 */
	__type(value, struct injected_packet);
	__uint(max_entries, 1);
} injected SEC(".maps");

/* Asked once about each packet that may be one: the answer is forgotten. */
static __always_inline int was_injected(struct xdp_md *ctx, __u64 bytes)
{
	__u32 zero = 0;
	struct injected_packet *packet = bpf_map_lookup_elem(&injected, &zero);

	if (!packet || packet->ifindex != ctx->ingress_ifindex || packet->length != bytes)
		return 0;
	packet->ifindex = 0;
	return 1;
}

#endif
