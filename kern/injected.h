/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Packets that user space gives back to the host.  Generic XDP sees them once more, maybe on
 * another CPU (RPS).
 */
#ifndef L2FWD_INJECTED_H
#define L2FWD_INJECTED_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define INJECTED_HEAD 56

struct injected_packet { /* what tells it from others */
	__u64 ifindex;
	__u64 length; /* 64 bits: the verifier knows no difference of packet pointers in 32 */
	__u8 head[INJECTED_HEAD]; /* the first bytes, or the Ethernet header of a shorter one */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct injected_packet);
	__type(value, __u32);
	__uint(max_entries, 4096);
} injected SEC(".maps");

static __always_inline int describe_packet(struct xdp_md *ctx, struct injected_packet *packet)
{
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->ifindex = ctx->ingress_ifindex;
	packet->length = (void *)(long)ctx->data_end - (void *)(long)ctx->data;
	if (packet->length < INJECTED_HEAD)
		return bpf_xdp_load_bytes(ctx, 0, packet->head, 14);
	return bpf_xdp_load_bytes(ctx, 0, packet->head, INJECTED_HEAD);
}

#endif
