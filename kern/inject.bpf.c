/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Run by BPF_PROG_TEST_RUN, once for each packet that user space gives back to the host. */
#include "injected.h"

/* With metadata: the link runs generic XDP, which will ask for this packet (was_injected). */
SEC("xdp")
int l2fwd_inject(struct xdp_md *ctx)
{
	struct injected_packet *packet;
	__u32 zero = 0;

	packet = bpf_map_lookup_elem(&injected, &zero);
	if (packet && ctx->data_meta != ctx->data) {
		packet->ifindex = ctx->ingress_ifindex;
		packet->length = ctx->data_end - ctx->data;
	}
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
