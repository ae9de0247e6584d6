/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The rule table in maps: which rule takes a packet, and what it does to it. */
#ifndef L2FWD_RULES_H
#define L2FWD_RULES_H

#include "parse.h"

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);   /* 0 */
	__type(value, __u32); /* generation in force */
	__uint(max_entries, 1);
} generation SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* generation & 1 */
	__type(value, struct rule_table);
	__uint(max_entries, 2);
} tables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* (generation & 1) * MAX_MASKS + place */
	__type(value, struct rule_mask);
	__uint(max_entries, 2 * MAX_MASKS);
} masks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* (generation & 1) * LINK_RULES + in_ifindex % LINK_RULES */
	__type(value, struct link_rule);
	__uint(max_entries, 2 * LINK_RULES);
} link_rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct near_rule);
	__uint(max_entries, 1 << NEAR_BITS);
} near_rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rule_key);
	__type(value, struct rule_action);
	__uint(max_entries, 1024); /* set to twice the entries wanted before loading */
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32); /* rule_action.rule */
	__type(value, struct rule_hits);
	__uint(max_entries, 1024); /* set to the rule count before loading */
} hits SEC(".maps");

static __always_inline void mask_key(struct packet_key *masked, const struct packet_key *key,
				     const struct packet_key *mask)
{
	const __u64 *from = (const void *)key, *by = (const void *)mask;
	__u64 *to = (void *)masked;

#pragma unroll
	for (int i = 0; i < 8; i++)
		to[i] = from[i] & by[i];
}

/* Read once: all of a packet's look-ups are in one version of the table. */
static __always_inline __u32 current_generation(void)
{
	__u32 zero = 0, *current = bpf_map_lookup_elem(&generation, &zero);

	return current ? *(volatile __u32 *)current : 0;
}

/* The rule that takes this packet whatever is in it; NULL if the packet has to be parsed. */
static __always_inline const struct rule_action *find_link_rule(struct xdp_md *ctx, __u32 version)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u32 place = (version & 1) * LINK_RULES + ctx->ingress_ifindex % LINK_RULES;
	const struct link_rule *rule = bpf_map_lookup_elem(&link_rules, &place);

	if (!rule || rule->in_ifindex != ctx->ingress_ifindex)
		return NULL;
	if ((void *)(eth + 1) > end || is_link_local(eth->h_dest))
		return NULL;
	return &rule->action;
}

/* With as few branches as can be: the verifier follows each, in a loop of loops. */
static __always_inline int is_same_key(const void *left, const void *right)
{
	const __u64 *a = left, *b = right;
	__u64 difference = 0;

	if (a[0] != b[0])
		return 0;
#pragma unroll
	for (int i = 1; i < HASHED_WORDS; i++)
		difference |= a[i] ^ b[i];
	return !difference;
}

/* The rule of this packet under a mask, and its place in near_rules; NULL if there is none. */
static __always_inline const struct near_rule *find_near_rule(const struct packet_key *key,
							      const struct rule_mask *mask,
							      __u32 version, __u32 index, __u32 *at)
{
	struct rule_key masked = {.generation = version, .mask_index = index};
	const struct near_rule *rule;
	__u32 first;

	mask_key(&masked.packet, key, &mask->mask);
	first = hash_key(&masked) >> (64 - NEAR_BITS);
	for (__u32 i = 0; i < NEAR_PROBES; i++) {
		*at = (first + i) % (1 << NEAR_BITS);
		rule = bpf_map_lookup_elem(&near_rules, at);
		if (rule && is_same_key(&rule->key, &masked))
			return rule;
	}
	return NULL;
}

/* The place of the rule of least rank, below @best_rank, under the masks after the first; NOT_NEAR
 * if there is none.  Not static: the verifier takes it once and by itself, not again for every path
 * of the parser.
 */
__noinline __u32 search_near(const struct packet_key *key, __u32 version, __u32 mask_count,
			     __u32 best_rank)
{
	const struct near_rule *rule;
	const struct rule_mask *mask;
	__u32 best = NOT_NEAR, place;

	if (!key)
		return NOT_NEAR;
	for (__u32 i = 1; i < MAX_MASKS; i++) {
		if (i >= mask_count)
			break;
		place = (version & 1) * MAX_MASKS + i;
		mask = bpf_map_lookup_elem(&masks, &place);
		if (!mask || best_rank < mask->best_rank)
			break;
		rule = find_near_rule(key, mask, version, i, &place);
		if (rule && rule->action.rank < best_rank) {
			best = place;
			best_rank = rule->action.rank;
		}
	}
	return best;
}

/* The first mask is often the only one: that takes no call of search_near, a tenth of the time. */
static __always_inline const struct rule_action *find_near(const struct packet_key *key,
							   __u32 version, __u32 mask_count)
{
	__u32 place = (version & 1) * MAX_MASKS;
	const struct rule_mask *mask = bpf_map_lookup_elem(&masks, &place);
	const struct near_rule *best, *better;

	if (!mask)
		return NULL;
	best = find_near_rule(key, mask, version, 0, &place);
	if (mask_count > 1) {
		place = search_near(key, version, mask_count, best ? best->action.rank : ~0U);
		better = bpf_map_lookup_elem(&near_rules, &place);
		if (better)
			best = better;
	}
	return best ? &best->action : NULL;
}

static __always_inline const struct rule_action *find_far(const struct packet_key *key,
							  __u32 version, __u32 mask_count)
{
	const struct rule_action *best = NULL, *found;
	const struct rule_mask *mask;
	struct rule_key masked;
	__u32 place;

	masked.generation = version;
	for (__u32 i = 0; i < MAX_MASKS; i++) {
		if (i >= mask_count)
			break;
		place = (version & 1) * MAX_MASKS + i;
		mask = bpf_map_lookup_elem(&masks, &place);
		if (!mask || (best && best->rank < mask->best_rank))
			break;
		masked.mask_index = i;
		mask_key(&masked.packet, key, &mask->mask);
		found = bpf_map_lookup_elem(&rules, &masked);
		if (found && (!best || found->rank < best->rank))
			best = found;
	}
	return best;
}

/* The rule of least rank that matches; NULL and the miss verdict if none does. */
static __always_inline const struct rule_action *find_rule(const struct packet_key *key,
							   __u32 version, __u32 *miss_verdict)
{
	const struct rule_table *table;
	__u32 slot = version & 1;

	*miss_verdict = VERDICT_PASS;
	table = bpf_map_lookup_elem(&tables, &slot);
	if (!table)
		return NULL;
	*miss_verdict = table->miss_verdict;
	if (table->is_near)
		return find_near(key, version, table->mask_count);
	return find_far(key, version, table->mask_count);
}

static __always_inline void count_hit(const struct rule_action *action, __u64 bytes)
{
	struct rule_hits *count = bpf_map_lookup_elem(&hits, &action->rule);

	if (count) {
		count->packets++;
		count->bytes += bytes;
	}
}

#endif
