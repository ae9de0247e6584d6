/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Generator of the benches: BPF_PROG_TEST_RUN makes live frames of a packet, and this sends
 * each by the link that the run names as its ingress.  The frames are used again as the path
 * left them, which is unchanged: AF_XDP in copy mode takes a copy.
 */
#include "l2fwd.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IPV4_SOURCE (14 + 12) /* offset in an untagged frame */

struct lab_flows {
	__u32 count; /* 0: send the packet as it is */
	__u32 next;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* 0 */
	__type(value, struct lab_flows);
	__uint(max_entries, 1);
} lab_flows SEC(".maps");

SEC("xdp")
int l2fwd_lab_send(struct xdp_md *ctx)
{
	__be32 *source = (void *)(long)ctx->data + IPV4_SOURCE;
	__u32 zero = 0;
	struct lab_flows *flows;

	flows = bpf_map_lookup_elem(&lab_flows, &zero);
	if (flows && flows->count && (void *)(source + 1) <= (void *)(long)ctx->data_end) {
		if (++flows->next >= flows->count)
			flows->next = 0;
		*source = bpf_htonl(flows->next + (10U << 24));
	}
	return XDP_TX;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
