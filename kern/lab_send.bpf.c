/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Generator of the benches: BPF_PROG_TEST_RUN makes the frames, this sends each by the link
 * that the run names as its ingress.
 */
#include "l2fwd.h"

#include <bpf/bpf_helpers.h>

SEC("xdp")
int l2fwd_lab_send(struct xdp_md *ctx)
{
	/* A frame comes back from the peer shortened or marked only if a forwarder wrote into
	 * it; in copy mode none does, so nothing has to be restored here.
	 */
	(void)ctx;
	return XDP_TX;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
