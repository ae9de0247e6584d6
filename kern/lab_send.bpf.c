/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Generator of the benches: BPF_PROG_TEST_RUN makes live frames of a packet, and this sends
 * each by the link that the run names as its ingress.  The frames are used again as the path
 * left them, which is unchanged: AF_XDP in copy mode takes a copy.
 */
#include "l2fwd.h"

#include <bpf/bpf_helpers.h>

SEC("xdp")
int l2fwd_lab_send(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_TX;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
