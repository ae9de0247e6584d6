/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Run by BPF_PROG_TEST_RUN, once for each packet that user space gives back to the host. */
#include "injected.h"

SEC("xdp")
int l2fwd_inject(struct xdp_md *ctx)
{
	struct injected_packet packet;
	__u32 once = 1;

	if (!describe_packet(ctx, &packet))
		bpf_map_update_elem(&injected, &packet, &once, BPF_ANY);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
