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
	__u64 length;
	__u8 head[INJECTED_HEAD]; /* the first bytes, or all of a shorter one */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct injected_packet);
	__type(value, __u32);
	__uint(max_entries, 4096);
} injected SEC(".maps");

static __always_inline int describe_packet(struct xdp_md *ctx, struct injected_packet *packet)
{
	__u64 length = bpf_xdp_get_buff_len(ctx);

	__builtin_memset(packet, 0, sizeof(*packet));
	packet->ifindex = ctx->ingress_ifindex;
	packet->length = length;
	if (length > INJECTED_HEAD)
		length = INJECTED_HEAD;
	if (!length)
		return -1;
	return bpf_xdp_load_bytes(ctx, 0, packet->head, length);
}

#endif
