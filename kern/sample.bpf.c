/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Every n-th packet of a queue goes to the host stack, the others to its AF_XDP socket. */
#include "parse.h"
#include "sockets.h"

#include <bpf/bpf_helpers.h>
#include <xdp/xdp_helpers.h>

struct sample_counters { /* SAMPLE_COUNTERS of l2fwd/abi.py */
	__u64 passed_packets;
	__u64 redirected_packets;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* RX queue id */
	__type(value, struct sample_counters);
	__uint(max_entries, 64); /* as sockets */
} queue_counters SEC(".maps");

/* Which packet is the n-th is counted per queue, not per CPU as what became of it is: a queue may
 * be served by several CPUs in turn, as those of a veth are, and k times n packets are to let
 * exactly k pass.  So it takes an atomic, on a cache line that one CPU holds on a NIC.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);	 /* RX queue id */
	__type(value, __u64);	 /* packets */
	__uint(max_entries, 64); /* as sockets */
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);   /* 0 */
	__type(value, __u32); /* n */
	__uint(max_entries, 1);
} every SEC(".maps");

/* libxdp's dispatcher: run after filters (default priority 50), go on when we pass. */
struct {
	__uint(priority, 60);
	__uint(XDP_PASS, 1);
} XDP_RUN_CONFIG(l2fwd_sample);

static __always_inline int is_nth(__u32 queue)
{
	__u64 *packets = bpf_map_lookup_elem(&seen, &queue);
	__u32 zero = 0, *n = bpf_map_lookup_elem(&every, &zero);

	if (!packets || !n || !*n)
		return 1;
	return __sync_fetch_and_add(packets, 1) % *n == *n - 1;
}

SEC("xdp.frags")
int l2fwd_sample(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u32 queue = ctx->rx_queue_index;
	struct sample_counters *count;
	int verdict = XDP_PASS;

	count = bpf_map_lookup_elem(&queue_counters, &queue);
	if (!count)
		return XDP_PASS;
	/* What is meant for the next bridge is no part of the sample, and never taken away. */
	if ((void *)(eth + 1) <= end && !is_link_local(eth->h_dest) && !is_nth(queue))
		verdict = bpf_redirect_map(&sockets, queue, XDP_PASS);
	if (verdict == XDP_REDIRECT)
		count->redirected_packets++;
	else
		count->passed_packets++;
	return verdict;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
