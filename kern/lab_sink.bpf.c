/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Sink of the benches: counts, and of stamped packets tells order, content and age. */
#include "lab.h"

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define MAX_WORDS 190 /* of eight bytes, in a packet of 1514 behind the stamp */

struct lab_check {
	__u32 is_stamped;
	__u32 is_checked;
	__u64 filler; /* every whole word behind the stamp */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* 0 */
	__type(value, struct lab_check);
	__uint(max_entries, 1);
} lab_check SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* 0 */
	__type(value, struct lab_seen);
	__uint(max_entries, 1);
} lab_seen SEC(".maps");

static __always_inline __u32 power_of(__u64 value)
{
	__u32 power = 0;
	__u32 step;

#pragma unroll
	for (step = 32; step; step >>= 1) {
		if (value >> step) {
			value >>= step;
			power += step;
		}
	}
	return power;
}

static __always_inline __u32 bucket_of(__u64 ns)
{
	__u32 power = power_of(ns);

	if (power < LAB_FIRST_POWER)
		return 0;
	if (power >= LAB_LAST_POWER)
		return LAB_BUCKETS - 1;
	return 1 + (power - LAB_FIRST_POWER) * LAB_SUB_BUCKETS +
	       ((ns >> (power - 4)) & (LAB_SUB_BUCKETS - 1));
}

static __noinline int is_intact(struct xdp_md *ctx, __u64 filler)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u64 *word = data + LAB_HEADER_BYTES + sizeof(struct lab_stamp);
	int i;

	for (i = 0; i < MAX_WORDS; i++, word++) {
		if ((void *)(word + 1) > end)
			return 1;
		if (*word != filler)
			return 0;
	}
	return 1;
}

static __always_inline void look(struct lab_seen *seen, const struct lab_stamp *stamp)
{
	__u64 age = bpf_ktime_get_ns() - stamp->sent_ns;
	__u32 bucket = bucket_of(age);

	if (stamp->sequence != seen->newest)
		seen->last_gap_ns = stamp->sent_ns;
	if (stamp->sequence < seen->newest)
		seen->reordered++;
	else
		seen->newest = stamp->sequence + 1;
	seen->latency_ns += age;
	if (bucket < LAB_BUCKETS)
		seen->buckets[bucket]++;
}

SEC("xdp.frags")
int l2fwd_lab_sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct lab_stamp *stamp = data + LAB_HEADER_BYTES;
	struct lab_check *check;
	struct lab_seen *seen;
	__u32 zero = 0;

	seen = bpf_map_lookup_elem(&lab_seen, &zero);
	check = bpf_map_lookup_elem(&lab_check, &zero);
	if (!seen || !check)
		return XDP_ABORTED; /* cannot happen: the arrays have one entry */
	seen->packets++;
	seen->bytes += bpf_xdp_get_buff_len(ctx);
	if (check->is_stamped) {
		if ((void *)(stamp + 1) > end) {
			seen->corrupted++;
			return XDP_DROP;
		}
		look(seen, stamp);
		if (check->is_checked && !is_intact(ctx, check->filler))
			seen->corrupted++;
	}
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
