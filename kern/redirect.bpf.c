/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Data path redirect: rule look-up, change, and on to the other link, all in the kernel. */
#include "act.h"
#include "rules.h"

#include <xdp/xdp_helpers.h>

/* libxdp's dispatcher: run after filters (default priority 50), go on when we pass. */
struct {
	__uint(priority, 60);
	__uint(XDP_PASS, 1);
} XDP_RUN_CONFIG(l2fwd_redirect);

SEC("xdp.frags")
int l2fwd_redirect(struct xdp_md *ctx)
{
	const struct rule_action *action;
	__u32 verdict = VERDICT_PASS, version;
	__u64 bytes = packet_length(ctx); /* as received */
	struct datapath_counters *count;
	struct packet_key key = {};

	count = find_counters();
	if (!count)
		return XDP_ABORTED;
	version = current_generation();
	action = find_link_rule(ctx, version);
	if (!action && !parse_packet(ctx, &key))
		action = find_rule(&key, version, &verdict);
	if (action) {
		count_hit(action, bytes);
		verdict = verdict_of(ctx, action, &key);
	}
	return act(ctx, action, verdict, &key, count, bytes);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
