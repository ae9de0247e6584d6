/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* From a packet to its packet_key: every read bounded, every loop too. */
#ifndef L2FWD_PARSE_H
#define L2FWD_PARSE_H

#include "l2fwd.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_EXTENSION_HEADERS 8
#define VLAN_ID_MASK 0x0fff
#define FRAGMENT_OFFSET 0x1fff
#define IPV6_FRAGMENT_OFFSET 0xfff8
#define ETH_P_QINQ1 0x9100 /* seen in the field, in no standard */

struct vlan_tag {
	__be16 tci;
	__be16 ethertype;
};

struct extension {
	__u8 next;
	__u8 length; /* in 8 bytes, without the first 8; for AH in 4 bytes, less 2 */
	__be16 fragment;
};

static __always_inline int is_vlan(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD) ||
	       ethertype == bpf_htons(ETH_P_QINQ1);
}

/* The words of a packet_key that parse_packet puts together.  They are read so soon that one which
 * several stores had made would be waited for: until all of them have left the store buffer.
 */
#define WORD_IN 0    /* in_ifindex, begin of dst_mac */
#define WORD_MACS 1  /* end of dst_mac, src_mac */
#define WORD_TYPE 2  /* ethertype, vlan_outer, vlan_inner, proto, ip_version */
#define WORD_PORTS 3 /* sport, dport, flags */
#define WORD_SRC 4
#define WORD_DST 6

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "so are the words put together");

static __always_inline void set_proto(struct packet_key *key, __u8 proto, __u64 ip_version)
{
	key_word *words = (key_word *)key;

	words[WORD_TYPE] |= (__u64)proto << 48 | ip_version << 56;
}

static __always_inline void parse_ports(void *header, void *end, struct packet_key *key, __u8 proto)
{
	key_word *words = (key_word *)key;
	__u32 *ports = header; /* both */

	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP && proto != IPPROTO_UDPLITE &&
	    proto != IPPROTO_SCTP)
		return;
	if ((void *)(ports + 1) > end)
		return;
	words[WORD_PORTS] |= *ports | (__u64)KEY_HAS_PORTS << 32;
}

static __always_inline void parse_ipv4(void *header, void *end, struct packet_key *key)
{
	key_word *words = (key_word *)key;
	struct iphdr *ip = header;
	__u32 length;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return;
	length = ip->ihl * 4;
	if (header + length > end || bpf_ntohs(ip->tot_len) < length)
		return;
	set_proto(key, ip->protocol, 4);
	words[WORD_SRC] = ip->saddr;
	words[WORD_DST] = ip->daddr;
	if (!(ip->frag_off & bpf_htons(FRAGMENT_OFFSET)))
		parse_ports(header + length, end, key, ip->protocol);
}

static __always_inline void parse_ipv6(void *header, void *end, struct packet_key *key)
{
	struct ipv6hdr *ip = header;
	struct extension *extension;
	void *next = ip + 1;
	__u8 proto;

	if (next > end || ip->version != 6)
		return;
	__builtin_memcpy(key->src, &ip->saddr, 16);
	__builtin_memcpy(key->dst, &ip->daddr, 16);
	proto = ip->nexthdr;
#pragma unroll
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		__u32 length;

		if (proto != IPPROTO_HOPOPTS && proto != IPPROTO_ROUTING &&
		    proto != IPPROTO_DSTOPTS && proto != IPPROTO_FRAGMENT && proto != IPPROTO_AH)
			break;
		extension = next;
		if ((void *)(extension + 1) > end)
			break;
		if (proto == IPPROTO_FRAGMENT)
			length = 8;
		else if (proto == IPPROTO_AH)
			length = (extension->length + 2) * 4;
		else
			length = (extension->length + 1) * 8;
		if (next + length > end)
			break;
		if (proto == IPPROTO_FRAGMENT &&
		    extension->fragment & bpf_htons(IPV6_FRAGMENT_OFFSET)) {
			set_proto(key, extension->next, 6);
			return; /* a later fragment has no ports */
		}
		proto = extension->next;
		next += length;
	}
	set_proto(key, proto, 6);
	parse_ports(next, end, key, proto);
}

/* 01-80-C2-00-00-00 to 0f: meant for the next bridge (IEEE 802.1Q, 8.6.3). */
static __always_inline int is_link_local(const __u8 *mac)
{
	return mac[0] == 0x01 && mac[1] == 0x80 && mac[2] == 0xc2 && mac[3] == 0x00 &&
	       mac[4] == 0x00 && mac[5] <= 0x0f;
}

/* Fill the zeroed @key from the packet; 0, or -1 if that is shorter than an Ethernet header. */
static __always_inline int parse_packet(struct xdp_md *ctx, struct packet_key *key)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	key_word *words = (key_word *)key;
	__u64 outer = NO_VLAN, inner = NO_VLAN;
	void *next = eth + 1;
	struct vlan_tag *tag;
	__be16 ethertype;

	/* Keep it in memory: in registers, every branch below would set and spill all of it. */
	asm volatile("" : "+r"(words) : : "memory");
	if (next > end)
		return -1;
	words[WORD_IN] = ctx->ingress_ifindex | (__u64) * (__u32 *)eth << 32;
	words[WORD_MACS] = *(key_word *)((void *)eth + 4);
	if (is_link_local(eth->h_dest))
		words[WORD_PORTS] = (__u64)KEY_LINK_LOCAL << 32;

	ethertype = eth->h_proto;
	tag = next;
	if (is_vlan(ethertype) && (void *)(tag + 1) <= end) {
		outer = tag->tci & bpf_htons(VLAN_ID_MASK);
		ethertype = tag->ethertype;
		next = ++tag;
		if (is_vlan(ethertype) && (void *)(tag + 1) <= end) {
			inner = tag->tci & bpf_htons(VLAN_ID_MASK);
			ethertype = tag->ethertype;
			next = tag + 1;
		}
	}
	words[WORD_TYPE] = ethertype | outer << 16 | inner << 32;
	if (ethertype == bpf_htons(ETH_P_IP))
		parse_ipv4(next, end, key);
	else if (ethertype == bpf_htons(ETH_P_IPV6))
		parse_ipv6(next, end, key);
	return 0;
}

#endif
