/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What becomes of a packet once its verdict is known: every end has a counter. */
#ifndef L2FWD_ACT_H
#define L2FWD_ACT_H

#include "change.h"
#include "counters.h"
#include "length.h"

#define LINK_ROOMS 64

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__type(key, __u32);   /* ifindex */
	__type(value, __u32); /* the same */
	__uint(max_entries, 64);
} links SEC(".maps");

/* What bpf_check_mtu has said in this tick of the clock, per CPU.  Calls into the kernel are most
 * of a program's time, and reading the tick is none.
 */
struct link_room {
	__u64 tick;
	__u32 ifindex;
	__u32 length; /* of the longest packet that passed */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* ifindex % LINK_ROOMS */
	__type(value, struct link_room);
	__uint(max_entries, LINK_ROOMS);
} rooms SEC(".maps");

/* Whether a packet of @length bytes is no longer than the link's MTU allows with a VLAN tag; a new
 * MTU counts from the next tick.
 */
static __always_inline int fits(struct xdp_md *ctx, __u32 ifindex, __u64 length)
{
	__u32 layer3 = length - sizeof(struct ethhdr);
	__u32 place = ifindex % LINK_ROOMS;
	struct link_room *room = bpf_map_lookup_elem(&rooms, &place);
	__u64 tick = bpf_jiffies64();

	if (!room)
		return 0;
	if (room->tick == tick && room->ifindex == ifindex && room->length >= length)
		return 1;
	/* Told the length, as it looks at the first buffer only.  A VLAN tag does not count, as for
	 * the kernel itself (xdp_ok_fwd_dev).
	 */
	if (bpf_check_mtu(ctx, ifindex, &layer3, -(int)sizeof(struct vlan_tag), 0) ==
	    BPF_MTU_CHK_RET_FRAG_NEEDED)
		return 0;
	room->tick = tick;
	room->ifindex = ifindex;
	room->length = length;
	return 1;
}

static __always_inline int change_packet(struct xdp_md *ctx, const struct rule_action *action,
					 const struct packet_key *key)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > end)
		return -1;
	if (action->changes & CHANGE_DEC_TTL)
		dec_ttl(ctx, key);
	if (action->changes & CHANGE_SWAP_MAC)
		swap_macs(eth);
	if (action->changes & CHANGE_SRC_MAC)
		__builtin_memcpy(eth->h_source, action->src_mac, 6);
	if (action->changes & CHANGE_DST_MAC)
		__builtin_memcpy(eth->h_dest, action->dst_mac, 6);
	if (action->changes & CHANGE_POP_VLAN && pop_vlan(ctx))
		return -1;
	if (action->changes & CHANGE_PUSH_VLAN && push_vlan(ctx, action->vlan))
		return -1;
	return 0;
}

static __always_inline int send_out(struct xdp_md *ctx, const struct rule_action *action,
				    const struct packet_key *key, struct datapath_counters *count,
				    __u64 bytes)
{
	__u64 length = bytes;
	int verdict;

	if (action->changes && change_packet(ctx, action, key)) {
		count->change_drops++;
		return XDP_DROP;
	}
	if (action->changes & (CHANGE_POP_VLAN | CHANGE_PUSH_VLAN))
		length = packet_length(ctx);
	if (!fits(ctx, action->out_ifindex, length)) {
		count->mtu_drops++;
		return XDP_DROP;
	}
	verdict = bpf_redirect_map(&links, action->out_ifindex, XDP_DROP);
	if (verdict == XDP_REDIRECT) {
		count->redirected_packets++;
		count->redirected_bytes += bytes;
	} else {
		count->no_link_drops++;
	}
	return verdict;
}

/* Whether the IP packet in the frame is no longer than the link's MTU, whatever tags it has. */
static __always_inline int ip_fits(struct xdp_md *ctx, const struct packet_key *key, __u32 ifindex)
{
	int extra = sizeof(struct vlan_tag);

	if (key->vlan_outer != bpf_htons(NO_VLAN))
		extra -= sizeof(struct vlan_tag);
	if (key->vlan_inner != bpf_htons(NO_VLAN))
		extra -= sizeof(struct vlan_tag);
	return fits(ctx, ifindex, packet_length(ctx) + extra);
}

/* The verdict of @action for this packet. */
static __always_inline __u32 verdict_of(struct xdp_md *ctx, const struct rule_action *action,
					const struct packet_key *key)
{
	if (!(action->changes & CHANGE_DEC_TTL) || !key->ip_version)
		return action->verdict;
	/* The last hop, or too long for the next one: the host stack answers for it. */
	if (!ttl_allows(ctx, key) || !ip_fits(ctx, key, action->out_ifindex))
		return VERDICT_PASS;
	return action->verdict;
}

/* @action is NULL only if @verdict is none of VERDICT_OUT. */
static __always_inline int act(struct xdp_md *ctx, const struct rule_action *action, __u32 verdict,
			       const struct packet_key *key, struct datapath_counters *count,
			       __u64 bytes)
{
	if (action && verdict == VERDICT_OUT)
		return send_out(ctx, action, key, count, bytes);
	if (verdict == VERDICT_DROP) {
		count->rule_drops++;
		return XDP_DROP;
	}
	count->passed_packets++;
	return XDP_PASS;
}

#endif
