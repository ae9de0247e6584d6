/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Answers in place to ICMP echo requests, ARP requests and neighbour solicitations: in an XDP
 * program, and in a worker.  Every access is bounded by @end, in a way that the verifier follows.
 *
 * What is not understood in full is no question: the host stack knows what to do with it.
 */
#ifndef L2FWD_ANSWER_H
#define L2FWD_ANSWER_H

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#ifdef __bpf__
#include <bpf/bpf_helpers.h> /* for its __always_inline */
#endif

/* ANSWER_KINDS of l2fwd/abi.py */
enum question_kind {
	ASKS_ECHO4,
	ASKS_ECHO6,
	ASKS_ARP,
	ASKS_NEIGHBOUR,
	ASKS_NOTHING,
};

struct asked_address {	/* a map key */
	__u8 bytes[16]; /* IPv4 in the first four */
	__u32 version;	/* 4 or 6 */
};

struct question {
	__u32 kind;	 /* enum question_kind */
	__u32 tag_bytes; /* of a VLAN tag, which the answer keeps */
	__u32 length;	 /* of the answer, bytes: the question's, but for ASKS_NEIGHBOUR */
	struct asked_address address;
};

struct answer_tag {
	__be16 tci;
	__be16 ethertype;
};

struct arp_ethernet { /* RFC 826, for Ethernet and IPv4 */
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_bytes;
	__u8 protocol_bytes;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
};

struct icmp_head {
	__u8 type;
	__u8 code;
	__be16 check;
	__be32 rest; /* of an echo: identifier and sequence number */
};

struct neighbour_head { /* RFC 4861, 4.3 and 4.4 */
	__u8 type;
	__u8 code;
	__be16 check;
	__be32 flags;
	__u8 target[16];
};

struct neighbour_option {
	__u8 type;
	__u8 length; /* in 8 bytes */
	__u8 mac[6];
};

_Static_assert(sizeof(struct asked_address) == 20, "a hash key: no padding");
_Static_assert(sizeof(struct arp_ethernet) == 28, "as on the wire");
_Static_assert(sizeof(struct neighbour_head) == 24, "as on the wire");

#define ICMP4_ECHO_REQUEST 8
#define ICMP4_ECHO_REPLY 0
#define ICMP6_ECHO_REQUEST 128
#define ICMP6_ECHO_REPLY 129
#define ICMP6_SOLICITATION 135
#define ICMP6_ADVERTISEMENT 136
#define OPTION_SOURCE_MAC 1
#define OPTION_TARGET_MAC 2
#define ADVERTISEMENT_SOLICITED 0x40000000
#define ADVERTISEMENT_OVERRIDE 0x20000000
#define PROTO_ICMP4 1
#define PROTO_ICMP6 58
#define ARP_REQUEST 1
#define ARP_REPLY 2
#define IPV4_MORE_OR_OFFSET 0x3fff
#define ANSWER_HOPS 64
#define NEIGHBOUR_HOPS 255   /* tells that no router was between (RFC 4861, 3.1) */
#define MAX_OPTION_BYTES 64u /* of a solicitation, a multiple of eight */
#define ADVERTISEMENT_BYTES (sizeof(struct neighbour_head) + sizeof(struct neighbour_option))

/* Checksums read words of what was written as something else. */
typedef __u16 __attribute__((may_alias)) checksum_word;

static __always_inline __u32 add_words(const void *from, int count, __u32 sum)
{
	const checksum_word *words = from;

	for (int i = 0; i < count; i++)
		sum += words[i];
	return sum;
}

static __always_inline __u16 fold_sum(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline int same_bytes(const __u8 *a, const __u8 *b, int count)
{
	__u8 differ = 0;

	for (int i = 0; i < count; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

static __always_inline int all_zero(const __u8 *bytes, int count)
{
	__u8 any = 0;

	for (int i = 0; i < count; i++)
		any |= bytes[i];
	return !any;
}

/* Neither a group, nor this network (0/8), nor this host (127/8), nor reserved (240/4). */
static __always_inline int is_unicast4(const __u8 *address)
{
	return address[0] != 0 && address[0] != 127 && address[0] < 224;
}

static __always_inline int is_unicast6(const __u8 *address)
{
	return address[0] != 0xff && !all_zero(address, 16);
}

/* ff02::1:ff00:0/104 with the last three bytes of @target. */
static __always_inline int is_solicited_node(const __u8 *address, const __u8 *target)
{
	return address[0] == 0xff && address[1] == 0x02 && all_zero(address + 2, 9) &&
	       address[11] == 0x01 && address[12] == 0xff &&
	       same_bytes(address + 13, target + 13, 3);
}

static __always_inline void read_arp(const struct arp_ethernet *arp, const void *end,
				     struct question *question)
{
	if ((const void *)(arp + 1) > end || arp->hardware != bpf_htons(1) ||
	    arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_bytes != 6 ||
	    arp->protocol_bytes != 4 || arp->operation != bpf_htons(ARP_REQUEST) ||
	    arp->sender_mac[0] & 1)
		return;
	/* A sender of 0.0.0.0 looks whether the address is taken (RFC 5227). */
	if (!is_unicast4(arp->sender) && !all_zero(arp->sender, 4))
		return;
	__builtin_memcpy(question->address.bytes, arp->target, 4);
	question->address.version = 4;
	question->kind = ASKS_ARP;
}

static __always_inline void read_ipv4(const struct iphdr *ip, const void *end,
				      struct question *question)
{
	const struct icmp_head *icmp = (const void *)(ip + 1);
	__u32 total;

	if ((const void *)(icmp + 1) > end || ip->version != 4 || ip->ihl != 5 ||
	    ip->protocol != PROTO_ICMP4 || ip->frag_off & bpf_htons(IPV4_MORE_OR_OFFSET))
		return;
	total = bpf_ntohs(ip->tot_len);
	if (total < sizeof(*ip) + sizeof(*icmp) || (const void *)ip + total > end)
		return;
	if (icmp->type != ICMP4_ECHO_REQUEST || icmp->code ||
	    !is_unicast4((const __u8 *)&ip->saddr) || !is_unicast4((const __u8 *)&ip->daddr) ||
	    fold_sum(add_words(ip, 10, 0)) != 0xffff)
		return;
	__builtin_memcpy(question->address.bytes, &ip->daddr, 4);
	question->address.version = 4;
	question->kind = ASKS_ECHO4;
}

/* Whether the options of a solicitation are well-formed, and none is there that must not be. */
static __always_inline int options_are_valid(const void *options, const void *end, __u32 bytes,
					     int is_probe)
{
	const struct neighbour_option *option;
	__u32 at = 0;

	for (int i = 0; i < (int)(MAX_OPTION_BYTES / 8); i++) {
		if (at >= bytes)
			return at == bytes;
		option = options + (at & (MAX_OPTION_BYTES - 1));
		if ((const void *)(option + 1) > end || !option->length)
			return 0;
		if (is_probe && option->type == OPTION_SOURCE_MAC)
			return 0;
		at += option->length * 8;
	}
	return at == bytes;
}

/* @bytes is a multiple of eight. */
static __always_inline int solicitation_adds_up(const struct ipv6hdr *ip, const void *end,
						__u32 bytes)
{
	const void *message = ip + 1;
	__u32 sum = ip->payload_len + bpf_htons(PROTO_ICMP6);

	sum = add_words(&ip->saddr, 16, sum);
	for (__u32 at = 0; at < sizeof(struct neighbour_head) + MAX_OPTION_BYTES; at += 8) {
		const void *part = message + at;

		/* Or the compiler would compute with @end, which the verifier forbids. */
		asm volatile("" : "+r"(part));
		if (at >= bytes)
			break;
		if (part + 8 > end)
			return 0;
		sum = add_words(part, 4, sum);
	}
	return fold_sum(sum) == 0xffff;
}

/* RFC 4861, 7.1.1. */
static __always_inline void read_solicitation(const struct ipv6hdr *ip, const void *end,
					      __u32 bytes, struct question *question)
{
	const struct neighbour_head *head = (const void *)(ip + 1);
	const __u8 *from = (const __u8 *)&ip->saddr;
	const __u8 *to = (const __u8 *)&ip->daddr;
	int is_probe;

	if ((const void *)(head + 1) > end || ip->hop_limit != NEIGHBOUR_HOPS || head->code ||
	    bytes < sizeof(*head) || bytes > sizeof(*head) + MAX_OPTION_BYTES || bytes & 7)
		return;
	is_probe = all_zero(from, 16);
	if ((!is_probe && from[0] == 0xff) || !is_unicast6(head->target))
		return;
	if (!is_solicited_node(to, head->target) && (is_probe || !same_bytes(to, head->target, 16)))
		return;
	if (!options_are_valid(head + 1, end, bytes - sizeof(*head), is_probe) ||
	    !solicitation_adds_up(ip, end, bytes))
		return;
	__builtin_memcpy(question->address.bytes, head->target, 16);
	question->address.version = 6;
	question->length =
		sizeof(struct ethhdr) + question->tag_bytes + sizeof(*ip) + ADVERTISEMENT_BYTES;
	question->kind = ASKS_NEIGHBOUR;
}

static __always_inline void read_ipv6(const struct ipv6hdr *ip, const void *end,
				      struct question *question)
{
	const struct icmp_head *icmp = (const void *)(ip + 1);
	__u32 bytes;

	if ((const void *)(icmp + 1) > end || ip->version != 6 || ip->nexthdr != PROTO_ICMP6)
		return;
	bytes = bpf_ntohs(ip->payload_len);
	if (bytes < sizeof(*icmp) || (const void *)icmp + bytes > end)
		return;
	if (icmp->type == ICMP6_SOLICITATION) {
		read_solicitation(ip, end, bytes, question);
		return;
	}
	if (icmp->type != ICMP6_ECHO_REQUEST || icmp->code ||
	    !is_unicast6((const __u8 *)&ip->saddr) || !is_unicast6((const __u8 *)&ip->daddr))
		return;
	__builtin_memcpy(question->address.bytes, &ip->daddr, 16);
	question->address.version = 6;
	question->kind = ASKS_ECHO6;
}

/* Find out what the packet asks of the link with address @mac, if anything.  @question is filled
 * in full.  Whether its address is to be answered for is the caller's to say.
 */
static __always_inline void read_question(const void *data, const void *end, const __u8 *mac,
					  struct question *question)
{
	const struct ethhdr *eth = data;
	const void *next = eth + 1;
	const struct answer_tag *tag = next;
	__be16 ethertype;
	int is_group;

	__builtin_memset(question, 0, sizeof(*question));
	question->kind = ASKS_NOTHING;
	if (next > end || eth->h_source[0] & 1)
		return;
	is_group = eth->h_dest[0] & 1;
	if (!is_group && !same_bytes(eth->h_dest, mac, 6))
		return;
	question->length = end - data;
	ethertype = eth->h_proto;
	if (ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD)) {
		if ((const void *)(tag + 1) > end)
			return;
		ethertype = tag->ethertype;
		question->tag_bytes = sizeof(*tag);
		next = tag + 1;
	}
	if (ethertype == bpf_htons(ETH_P_ARP))
		read_arp(next, end, question);
	else if (ethertype == bpf_htons(ETH_P_IP))
		read_ipv4(next, end, question);
	else if (ethertype == bpf_htons(ETH_P_IPV6))
		read_ipv6(next, end, question);
	/* To many: all of them would answer the one packet. */
	if (is_group && (question->kind == ASKS_ECHO4 || question->kind == ASKS_ECHO6))
		question->kind = ASKS_NOTHING;
}

static __always_inline int is_echo(const struct question *question)
{
	return question->kind == ASKS_ECHO4 || question->kind == ASKS_ECHO6;
}

/* RFC 1624, equation 3: what was a wrong checksum stays a wrong one. */
static __always_inline void change_type(struct icmp_head *icmp, __u8 type)
{
	__u16 before = *(checksum_word *)icmp;

	icmp->type = type;
	icmp->check = ~fold_sum((__u16)~icmp->check + (__u16)~before + *(checksum_word *)icmp);
}

static __always_inline int write_echo4(struct iphdr *ip, const void *end)
{
	struct icmp_head *icmp = (void *)(ip + 1);
	__be32 asker;

	if ((const void *)(icmp + 1) > end)
		return -1;
	asker = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = asker;
	ip->ttl = ANSWER_HOPS;
	ip->check = 0;
	ip->check = ~fold_sum(add_words(ip, 10, 0));
	change_type(icmp, ICMP4_ECHO_REPLY);
	return 0;
}

static __always_inline int write_echo6(struct ipv6hdr *ip, const void *end)
{
	struct icmp_head *icmp = (void *)(ip + 1);
	__u8 asker[16];

	if ((const void *)(icmp + 1) > end)
		return -1;
	__builtin_memcpy(asker, &ip->saddr, 16);
	__builtin_memcpy(&ip->saddr, &ip->daddr, 16);
	__builtin_memcpy(&ip->daddr, asker, 16);
	ip->hop_limit = ANSWER_HOPS;
	change_type(icmp, ICMP6_ECHO_REPLY);
	return 0;
}

static __always_inline int write_arp(struct arp_ethernet *arp, const void *end, const __u8 *mac)
{
	__u8 asked[4];

	if ((const void *)(arp + 1) > end)
		return -1;
	arp->operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(asked, arp->target, 4);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, 6);
	__builtin_memcpy(arp->target, arp->sender, 4);
	__builtin_memcpy(arp->sender_mac, mac, 6);
	__builtin_memcpy(arp->sender, asked, 4);
	return 0;
}

/* ff02::1, and the MAC that goes with it. */
static __always_inline void write_all_nodes(__u8 *address, __u8 *mac)
{
	__builtin_memset(address, 0, 16);
	address[0] = 0xff;
	address[1] = 0x02;
	address[15] = 0x01;
	__builtin_memset(mac, 0, 6);
	mac[0] = mac[1] = 0x33;
	mac[5] = 0x01;
}

static __always_inline int write_advertisement(struct ethhdr *eth, struct ipv6hdr *ip,
					       const void *end, const __u8 *mac)
{
	struct neighbour_head *head = (void *)(ip + 1);
	struct neighbour_option *option = (void *)(head + 1);
	__u32 flags = ADVERTISEMENT_OVERRIDE;

	if ((const void *)(option + 1) > end)
		return -1;
	if (all_zero((const __u8 *)&ip->saddr, 16)) {
		/* Who looks whether the address is taken has none to be answered at. */
		write_all_nodes((__u8 *)&ip->daddr, eth->h_dest);
	} else {
		__builtin_memcpy(&ip->daddr, &ip->saddr, 16);
		flags |= ADVERTISEMENT_SOLICITED;
	}
	__builtin_memcpy(&ip->saddr, head->target, 16);
	__builtin_memset(ip, 0, 4); /* version, traffic class and flow label */
	ip->version = 6;
	ip->payload_len = bpf_htons(ADVERTISEMENT_BYTES);
	ip->hop_limit = NEIGHBOUR_HOPS;
	head->type = ICMP6_ADVERTISEMENT;
	head->check = 0;
	head->flags = bpf_htonl(flags);
	option->type = OPTION_TARGET_MAC;
	option->length = 1;
	__builtin_memcpy(option->mac, mac, 6);
	head->check = ~fold_sum(add_words(&ip->saddr, 16 + ADVERTISEMENT_BYTES / 2,
					  ip->payload_len + bpf_htons(PROTO_ICMP6)));
	return 0;
}

/* Turn the packet into its answer; 0, or -1 with nothing changed but the MACs if it is too short.
 * The caller has made it @question->length bytes long.
 */
static __always_inline int write_answer(void *data, const void *end, const __u8 *mac,
					const struct question *question)
{
	struct ethhdr *eth = data;
	void *header = eth + 1;

	if (header > end)
		return -1;
	if (question->tag_bytes)
		header += sizeof(struct answer_tag);
	__builtin_memcpy(eth->h_dest, eth->h_source, 6);
	__builtin_memcpy(eth->h_source, mac, 6);
	switch (question->kind) {
	case ASKS_ECHO4:
		return write_echo4(header, end);
	case ASKS_ECHO6:
		return write_echo6(header, end);
	case ASKS_ARP:
		return write_arp(header, end, mac);
	case ASKS_NEIGHBOUR:
		return write_advertisement(eth, header, end, mac);
	}
	return -1;
}

#endif
