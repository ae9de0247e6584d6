/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Data path hybrid: what was learned is forwarded here, the rest goes up to be decided.  Without
 * flow masks nothing is learned: that is afxdp with rules.
 */
#include "act.h"
#include "flows.h"
#include "injected.h"
#include "sockets.h"

#include <xdp/xdp_helpers.h>

/* libxdp's dispatcher: run after filters (default priority 50), go on when we pass. */
struct {
	__uint(priority, 60);
	__uint(XDP_PASS, 1);
} XDP_RUN_CONFIG(l2fwd_hybrid);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);   /* 0 */
	__type(value, __u32); /* 1: this link runs generic XDP */
	__uint(max_entries, 1);
} generic SEC(".maps");

/* Whether user space has just given the packet back.  Asked once: the answer is forgotten. */
static __always_inline int was_injected(struct xdp_md *ctx)
{
	struct injected_packet packet;
	__u32 zero = 0, *is_generic;

	is_generic = bpf_map_lookup_elem(&generic, &zero);
	if (!is_generic || !*is_generic || describe_packet(ctx, &packet))
		return 0;
	return !bpf_map_delete_elem(&injected, &packet);
}

static __always_inline int send_up(struct xdp_md *ctx, struct datapath_counters *count, __u32 order)
{
	int verdict;

	if ((order & 0xff) != NO_FLOW_MASK)
		number_packet(ctx);
	/* XDP_PASS on a miss: a dead engine never becomes a black hole. */
	verdict = bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
	if (verdict == XDP_REDIRECT)
		count->upcall_packets++;
	else
		count->passed_packets++;
	return verdict;
}

/* No flow yet: what stays on this host is decided here, the rest by the worker. */
static __always_inline int decide(struct xdp_md *ctx, const struct packet_key *key,
				  struct datapath_counters *count, __u32 order, __u64 bytes)
{
	const struct rule_action *action;
	__u32 verdict;

	action = find_rule(key, current_generation(), &verdict);
	if (action)
		verdict = verdict_of(ctx, action, key);
	if (verdict == VERDICT_OUT || verdict == VERDICT_USER)
		return send_up(ctx, count, order);
	if (action)
		count_hit(action, bytes);
	return act(ctx, NULL, verdict, key, count, bytes);
}

SEC("xdp.frags")
int l2fwd_hybrid(struct xdp_md *ctx)
{
	__u64 bytes = packet_length(ctx); /* as received */
	struct datapath_counters *count;
	struct packet_key key = {};
	struct flow *flow;
	__u32 order, verdict;

	if (was_injected(ctx))
		return XDP_PASS;
	count = find_counters();
	if (!count)
		return XDP_ABORTED;
	if (parse_packet(ctx, &key))
		return act(ctx, NULL, VERDICT_PASS, &key, count, bytes);
	order = find_flow_order();
	flow = find_flow(ctx, &key, order);
	if (!flow || !is_settled(flow, ctx->rx_queue_index))
		return decide(ctx, &key, count, order, bytes);
	count_flow(flow, bytes);
	count_hit(&flow->action, bytes);
	verdict = verdict_of(ctx, &flow->action, &key);
	return act(ctx, &flow->action, verdict, &key, count, bytes);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
