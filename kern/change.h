/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What an action does to a packet, in the order of enum rule_change. */
#ifndef L2FWD_CHANGE_H
#define L2FWD_CHANGE_H

#include "parse.h"

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 mac[6];

	__builtin_memcpy(mac, eth->h_source, 6);
	__builtin_memcpy(eth->h_source, eth->h_dest, 6);
	__builtin_memcpy(eth->h_dest, mac, 6);
}

/* 0 also where there is no tag to pop. */
static __always_inline int pop_vlan(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u8 macs[12];

	if ((void *)(eth + 1) + sizeof(struct vlan_tag) > end || !is_vlan(eth->h_proto))
		return 0;
	__builtin_memcpy(macs, eth, sizeof(macs));
	if (bpf_xdp_adjust_head(ctx, sizeof(struct vlan_tag)))
		return -1;
	end = (void *)(long)ctx->data_end;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > end)
		return -1;
	__builtin_memcpy(eth, macs, sizeof(macs));
	return 0;
}

static __always_inline int push_vlan(struct xdp_md *ctx, __u16 vlan)
{
	void *end;
	struct ethhdr *eth;
	struct vlan_tag *tag;
	__u8 macs[12];

	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(struct vlan_tag)))
		return -1;
	end = (void *)(long)ctx->data_end;
	eth = (void *)(long)ctx->data;
	tag = (void *)(eth + 1);
	if ((void *)(tag + 1) > end)
		return -1;
	__builtin_memcpy(macs, (void *)eth + sizeof(*tag), sizeof(macs));
	__builtin_memcpy(eth, macs, sizeof(macs));
	/* What was the ethertype lies behind the tag already, and stays. */
	eth->h_proto = bpf_htons(ETH_P_8021Q);
	tag->tci = bpf_htons(vlan);
	return 0;
}

/* Where the IP header begins, if @key has one. */
static __always_inline void *ip_header(struct xdp_md *ctx, const struct packet_key *key)
{
	void *next = (void *)(long)ctx->data + sizeof(struct ethhdr);

	if (key->vlan_outer != bpf_htons(NO_VLAN))
		next += sizeof(struct vlan_tag);
	if (key->vlan_inner != bpf_htons(NO_VLAN))
		next += sizeof(struct vlan_tag);
	return next;
}

static __always_inline void dec_ttl(struct xdp_md *ctx, const struct packet_key *key)
{
	void *end = (void *)(long)ctx->data_end;
	void *header = ip_header(ctx, key);

	if (key->ip_version == 4) {
		struct iphdr *ip = header;
		__u16 before, after;
		__u32 sum;

		if ((void *)(ip + 1) > end)
			return;
		/* RFC 1624, equation 3, over the word that the TTL is the high byte of. */
		before = ip->ttl << 8 | ip->protocol;
		ip->ttl--;
		after = ip->ttl << 8 | ip->protocol;
		sum = (__u16)~bpf_ntohs(ip->check) + (__u16)~before + after;
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		ip->check = bpf_htons((__u16)~sum);
	} else if (key->ip_version == 6) {
		struct ipv6hdr *ip = header;

		if ((void *)(ip + 1) <= end)
			ip->hop_limit--;
	}
}

/* Asked before any change, so that a packet left to the host stack is untouched. */
static __always_inline int ttl_allows(struct xdp_md *ctx, const struct packet_key *key)
{
	void *end = (void *)(long)ctx->data_end;
	void *header = ip_header(ctx, key);

	if (key->ip_version == 4) {
		struct iphdr *ip = header;

		return (void *)(ip + 1) <= end && ip->ttl > 1;
	}
	if (key->ip_version == 6) {
		struct ipv6hdr *ip = header;

		return (void *)(ip + 1) <= end && ip->hop_limit > 1;
	}
	return 1;
}

#endif
