/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What the benches hold our programs against: from link to link with nothing else done. */
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__type(key, __u32);   /* ifindex of the link that received */
	__type(value, __u32); /* of the one that sends */
	__uint(max_entries, 64);
} links SEC(".maps");

SEC("xdp.frags")
int l2fwd_lab_redirect(struct xdp_md *ctx)
{
	return bpf_redirect_map(&links, ctx->ingress_ifindex, XDP_DROP);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
