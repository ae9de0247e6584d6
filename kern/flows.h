/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The flow table: what user space has decided, and when the kernel may take over from it. */
#ifndef L2FWD_FLOWS_H
#define L2FWD_FLOWS_H

#include "rules.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, __u64); /* hash_key of struct flow_key: the map's own hash of that is slower */
	__type(value, struct flow);
	__uint(max_entries, 1024); /* set to the flow count before loading */
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* slot */
	__type(value, struct packet_key);
	__uint(max_entries, MAX_FLOW_MASKS);
} flow_masks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);   /* 0 */
	__type(value, __u32); /* slots, a byte each */
	__uint(max_entries, 1);
} flow_order SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32); /* RX queue id */
	__type(value, struct queue_progress);
	__uint(max_entries, 64); /* set to the link's queue count before loading */
} progress SEC(".maps");

/* The clock as it was read first in this tick, per CPU: between two ticks it stands still. */
struct clock {
	__u64 tick;
	__u64 now; /* ns, CLOCK_MONOTONIC_COARSE */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* 0 */
	__type(value, struct clock);
	__uint(max_entries, 1);
} clocks SEC(".maps");

static __always_inline __u64 read_clock(void)
{
	__u32 zero = 0;
	struct clock *clock = bpf_map_lookup_elem(&clocks, &zero);
	__u64 tick = bpf_jiffies64();

	if (!clock)
		return 0;
	if (clock->tick != tick) {
		clock->tick = tick;
		clock->now = bpf_ktime_get_coarse_ns();
	}
	return clock->now;
}

static __always_inline __u32 find_flow_order(void)
{
	__u32 zero = 0, *order = bpf_map_lookup_elem(&flow_order, &zero);

	return order ? *(volatile __u32 *)order : ~0U;
}

/* The entry under the mask of a slot, settled or not; NULL if there is none, or no such slot. */
static __always_inline struct flow *find_masked_flow(const struct packet_key *key, __u32 queue,
						     __u32 slot)
{
	const struct packet_key *mask = bpf_map_lookup_elem(&flow_masks, &slot);
	struct flow_key masked = {.queue = queue, .mask_slot = slot};
	struct flow *found;
	__u64 hash;

	if (!mask)
		return NULL;
	mask_key(&masked.packet, key, mask);
	hash = hash_key(&masked);
	found = bpf_map_lookup_elem(&flows, &hash);
	/* Another flow may have this hash. */
	return found && is_same_key(&found->key, &masked) ? found : NULL;
}

/* The first slot of @order with an entry for this packet; NO_FLOW_MASK if there is none.  Not
 * static, so that the verifier takes it by itself, as search_near.
 */
__noinline __u32 find_older_slot(const struct packet_key *key, __u32 queue, __u32 order)
{
	if (!key)
		return NO_FLOW_MASK;
	for (int i = 1; i < MAX_FLOW_MASKS; i++) {
		__u32 slot = order & 0xff;

		if (slot == NO_FLOW_MASK || find_masked_flow(key, queue, slot))
			return slot;
		order >>= 8;
	}
	return NO_FLOW_MASK;
}

/* The entry of this packet's flow, settled or not; NULL if none was learned. */
static __always_inline struct flow *find_flow(struct xdp_md *ctx, const struct packet_key *key,
					      __u32 order)
{
	__u32 queue = ctx->rx_queue_index;
	struct flow *found = find_masked_flow(key, queue, order & 0xff);

	if (found || (order >> 8 & 0xff) == NO_FLOW_MASK)
		return found;
	return find_masked_flow(key, queue, find_older_slot(key, queue, order >> 8));
}

/* Whether @flow is the kernel's: none of its packets may be left in user space, or this one
 * would overtake it.  If not, this packet goes up as well, and the flow waits for it.
 */
static __always_inline int is_settled(struct flow *flow, __u32 queue)
{
	struct queue_progress *queued;
	__u64 sent_up;

	if (flow->wait_for == FLOW_SETTLED)
		return 1;
	queued = bpf_map_lookup_elem(&progress, &queue);
	if (!queued)
		return 0;
	sent_up = *(volatile __u64 *)&queued->sent_up;
	if (flow->wait_for == FLOW_NEW)
		flow->wait_for = sent_up;
	/* Nothing was numbered where a driver has no room for metadata: only patience helps. */
	if ((!sent_up || *(volatile __u64 *)&queued->done < flow->wait_for) &&
	    (__s64)(bpf_ktime_get_coarse_ns() - flow->last_seen) < FLOW_PATIENCE_NS) {
		flow->wait_for = sent_up + 1;
		return 0;
	}
	flow->wait_for = FLOW_SETTLED;
	return 1;
}

/* Number the packet, in front of its data: the worker tells by that how far it has come. */
static __always_inline void number_packet(struct xdp_md *ctx)
{
	__u32 queue = ctx->rx_queue_index;
	struct queue_progress *queued = bpf_map_lookup_elem(&progress, &queue);
	void *data, *meta;
	__u64 *number;

	/* Where a driver has no room for metadata, flows are settled by patience. */
	if (!queued || bpf_xdp_adjust_meta(ctx, -(int)sizeof(*number)))
		return;
	data = (void *)(long)ctx->data;
	meta = (void *)(long)ctx->data_meta;
	/* Right before the data, where the worker looks, also if metadata was there already. */
	number = meta + ((data - meta - sizeof(*number)) & 0xff);
	if ((void *)(number + 1) > data)
		return;
	*number = __sync_fetch_and_add(&queued->sent_up, 1) + 1;
}

static __always_inline void count_flow(struct flow *flow, __u64 bytes)
{
	flow->packets++;
	flow->bytes += bytes;
	flow->last_seen = read_clock();
}

#endif
