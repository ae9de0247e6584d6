/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Sink of the benches: the link's own counter tells how many came. */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp")
int l2fwd_lab_drop(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
