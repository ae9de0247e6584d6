/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Answers for addresses that this host need not have: here, or in the worker behind the socket.
 * Everything else stays with the host stack.
 */
#include "answer.h"
#include "counters.h"
#include "sockets.h"

#include <bpf/bpf_helpers.h>
#include <xdp/xdp_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct asked_address);
	__type(value, __u32);	   /* 1 */
	__uint(max_entries, 1024); /* MAX_ANSWERED of l2fwd/tool_config.py */
} addresses SEC(".maps");

/* ECHO_FLAGS of l2fwd/abi.py */
enum echo_flag {
	ECHO_ANY_ADDRESS = 1 << 0, /* echo requests for any address are answered */
	ECHO_IN_KERNEL = 1 << 1,   /* answered here */
	ECHO_REDIRECT = 1 << 2,	   /* sent by XDP_REDIRECT to this link, not by XDP_TX */
};

struct echo_settings {
	__u8 mac[6]; /* of this link */
	__u16 flags; /* enum echo_flag */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* 0 */
	__type(value, struct echo_settings);
	__uint(max_entries, 1);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);   /* enum question_kind */
	__type(value, __u64); /* packets sent back from here */
	__uint(max_entries, ASKS_NOTHING);
} answered SEC(".maps");

/* libxdp's dispatcher: run after filters (default priority 50), go on when we pass. */
struct {
	__uint(priority, 60);
	__uint(XDP_PASS, 1);
} XDP_RUN_CONFIG(l2fwd_echo);

static __always_inline int is_asked_of_us(const struct echo_settings *set,
					  const struct question *question)
{
	if (question->kind == ASKS_NOTHING)
		return 0;
	if (set->flags & ECHO_ANY_ADDRESS && is_echo(question))
		return 1;
	return bpf_map_lookup_elem(&addresses, &question->address) != NULL;
}

static __always_inline int answer_here(struct xdp_md *ctx, const struct echo_settings *set,
				       const struct question *question,
				       struct datapath_counters *count)
{
	__u64 bytes = (void *)(long)ctx->data_end - (void *)(long)ctx->data; /* as received */
	__u32 kind = question->kind;
	__u64 *answers = bpf_map_lookup_elem(&answered, &kind);

	/* Of a packet in several pieces the last one is resized, not the first. */
	if (!answers || bpf_xdp_get_buff_len(ctx) != bytes ||
	    (question->length != bytes &&
	     bpf_xdp_adjust_tail(ctx, (int)question->length - (int)bytes))) {
		count->passed_packets++;
		return XDP_PASS;
	}
	if (write_answer((void *)(long)ctx->data, (void *)(long)ctx->data_end, set->mac,
			 question)) {
		count->change_drops++;
		return XDP_DROP;
	}
	++*answers;
	count->redirected_packets++;
	count->redirected_bytes += bytes;
	return set->flags & ECHO_REDIRECT ? bpf_redirect(ctx->ingress_ifindex, 0) : XDP_TX;
}

SEC("xdp.frags")
int l2fwd_echo(struct xdp_md *ctx)
{
	const struct echo_settings *set;
	struct datapath_counters *count;
	struct question question;
	__u32 zero = 0;
	int verdict = XDP_PASS;

	count = find_counters();
	set = bpf_map_lookup_elem(&settings, &zero);
	if (!count || !set)
		return XDP_ABORTED;
	read_question((void *)(long)ctx->data, (void *)(long)ctx->data_end, set->mac, &question);
	if (is_asked_of_us(set, &question)) {
		if (set->flags & ECHO_IN_KERNEL)
			return answer_here(ctx, set, &question, count);
		/* XDP_PASS on a miss: a dead engine never becomes a black hole. */
		verdict = bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
	}
	if (verdict == XDP_REDIRECT)
		count->redirected_packets++;
	else
		count->passed_packets++;
	return verdict;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
