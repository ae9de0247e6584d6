/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Routing in the kernel: its FIB is asked for every packet.  What needs more than a MAC address and
 * one hop less goes to the host stack: that answers, resolves, fragments.
 */
#include "change.h"
#include "counters.h"

#include <xdp/xdp_helpers.h>

#define AF_INET 2
#define AF_INET6 10
#define IPV6_TRAFFIC_CLASS_AND_FLOW 0x0fffffff

/* libxdp's dispatcher: run after filters (default priority 50), go on when we pass. */
struct {
	__uint(priority, 60);
	__uint(XDP_PASS, 1);
} XDP_RUN_CONFIG(l2fwd_l3fwd);

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__type(key, __u32);   /* ifindex */
	__type(value, __u32); /* the same */
	__uint(max_entries, 64);
} links SEC(".maps");

struct own_mac {
	__u8 mac[6];
	__u8 zero[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* 0 */
	__type(value, struct own_mac);
	__uint(max_entries, 1);
} own_mac SEC(".maps");

static __always_inline int is_for_us(const struct ethhdr *eth)
{
	__u32 zero = 0;
	const struct own_mac *own = bpf_map_lookup_elem(&own_mac, &zero);
	const __u16 *to = (const void *)eth->h_dest, *mine;

	if (!own)
		return 0;
	mine = (const void *)own->mac;
	return to[0] == mine[0] && to[1] == mine[1] && to[2] == mine[2];
}

/* What is never routed (_FOR_THE_HOST of l2fwd/fib.py): 0/8, 127/8, 169.254/16, multicast,
 * broadcast.
 */
static __always_inline int is_special_ipv4(__be32 address)
{
	__u32 number = bpf_ntohl(address), first = number >> 24;

	return first == 0 || first == 127 || number >> 16 == 0xa9fe || first >> 4 == 0xe ||
	       number == 0xffffffff;
}

static __always_inline int is_link_local_ipv6(const struct in6_addr *address)
{
	return (address->s6_addr16[0] & bpf_htons(0xffc0)) == bpf_htons(0xfe80);
}

/* Fill @fib; 0, or -1 for what only the host stack routes: options, no hop left, cut short. */
static __always_inline int ask_ipv4(struct iphdr *ip, void *end, __u32 length,
				    struct bpf_fib_lookup *fib)
{
	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->ttl <= 1)
		return -1;
	if (bpf_ntohs(ip->tot_len) < sizeof(*ip) || bpf_ntohs(ip->tot_len) > length)
		return -1;
	if (is_special_ipv4(ip->saddr) || is_special_ipv4(ip->daddr))
		return -1;
	fib->family = AF_INET;
	fib->tos = ip->tos;
	fib->l4_protocol = ip->protocol;
	fib->ipv4_src = ip->saddr;
	fib->ipv4_dst = ip->daddr;
	return 0;
}

static __always_inline int ask_ipv6(struct ipv6hdr *ip, void *end, __u32 length,
				    struct bpf_fib_lookup *fib)
{
	/* Hop-by-hop options are for every router. */
	if ((void *)(ip + 1) > end || ip->version != 6 || ip->nexthdr == IPPROTO_HOPOPTS ||
	    ip->hop_limit <= 1 || bpf_ntohs(ip->payload_len) + sizeof(*ip) > length)
		return -1;
	if (is_link_local_ipv6(&ip->saddr) || is_link_local_ipv6(&ip->daddr))
		return -1;
	fib->family = AF_INET6;
	fib->flowinfo = *(__be32 *)ip & bpf_htonl(IPV6_TRAFFIC_CLASS_AND_FLOW);
	fib->l4_protocol = ip->nexthdr;
	__builtin_memcpy(fib->ipv6_src, &ip->saddr, sizeof(fib->ipv6_src));
	__builtin_memcpy(fib->ipv6_dst, &ip->daddr, sizeof(fib->ipv6_dst));
	return 0;
}

/* Where the packet goes, with both MAC addresses in @fib; 0, or -1 if the host stack takes it. */
static __always_inline int find_route(struct xdp_md *ctx, struct bpf_fib_lookup *fib, __u32 length)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > end || !is_for_us(eth))
		return -1;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if (ask_ipv4((void *)(eth + 1), end, length, fib))
			return -1;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if (ask_ipv6((void *)(eth + 1), end, length, fib))
			return -1;
	} else {
		return -1;
	}
	/* What is received, not what the header says: with GRO that is several packets. */
	fib->tot_len = length;
	fib->ifindex = ctx->ingress_ifindex;
	if (bpf_fib_lookup(ctx, fib, sizeof(*fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return -1;
	return bpf_map_lookup_elem(&links, &fib->ifindex) ? 0 : -1;
}

static __always_inline void hop(struct xdp_md *ctx, const struct bpf_fib_lookup *fib)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct packet_key key = {};

	if ((void *)(eth + 1) > end)
		return;
	key.ip_version = fib->family == AF_INET ? 4 : 6;
	key.vlan_outer = key.vlan_inner = bpf_htons(NO_VLAN);
	dec_ttl(ctx, &key);
	__builtin_memcpy(eth->h_dest, fib->dmac, 6);
	__builtin_memcpy(eth->h_source, fib->smac, 6);
}

SEC("xdp.frags")
int l2fwd_l3fwd(struct xdp_md *ctx)
{
	struct datapath_counters *count = find_counters();
	struct bpf_fib_lookup fib = {};
	__u64 bytes = bpf_xdp_get_buff_len(ctx);
	int verdict;

	if (!count)
		return XDP_ABORTED;
	if (bytes > 0xffff || find_route(ctx, &fib, bytes - sizeof(struct ethhdr))) {
		count->passed_packets++;
		return XDP_PASS;
	}
	hop(ctx, &fib);
	verdict = bpf_redirect_map(&links, fib.ifindex, XDP_DROP);
	if (verdict == XDP_REDIRECT) {
		count->redirected_packets++;
		count->redirected_bytes += bytes;
	} else {
		count->no_link_drops++;
	}
	return verdict;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
