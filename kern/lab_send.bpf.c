/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Generator of the benches: BPF_PROG_TEST_RUN makes live frames of a packet, and this sends
 * each by the link that the run names as its ingress, or drops it where none is due.  Frames
 * are used again as the path left them, so their header is written each time.
 */
#include "lab.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define CATCH_UP_NS 1000000 /* what was late for longer is not sent in a burst */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32); /* 0 */
	__type(value, struct lab_settings);
	__uint(max_entries, 1);
} lab_settings SEC(".maps");

struct lab_packet {
	__u8 header[LAB_HEADER_BYTES];
	struct lab_stamp stamp;
} __attribute__((packed));

static __always_inline int is_due(struct lab_settings *settings, __u64 now)
{
	if (settings->limit && settings->sent >= settings->limit)
		return 0;
	if (settings->later_from && settings->sent >= settings->later_from &&
	    !settings->changed_ns) {
		settings->interval_ns = settings->later_interval_ns;
		settings->next_ns = now;
		settings->changed_ns = now;
	}
	if (!settings->interval_ns)
		return 1;
	if (now < settings->next_ns)
		return 0;
	if (now - settings->next_ns > CATCH_UP_NS)
		settings->next_ns = now;
	settings->next_ns += settings->interval_ns;
	return 1;
}

static __always_inline void write_flow(struct lab_settings *settings, struct lab_packet *packet)
{
	struct ethhdr *eth = (void *)packet->header;
	struct iphdr *ip = (void *)(eth + 1);
	__u32 flow = settings->next_flow;

	settings->next_flow = flow + 1 < settings->flows ? flow + 1 : 0;
	eth->h_source[3] = flow >> 16;
	eth->h_source[4] = flow >> 8;
	eth->h_source[5] = flow;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		ip->saddr = bpf_htonl(flow + (10U << 24));
}

static __always_inline int resize(struct lab_settings *settings, struct xdp_md *ctx)
{
	__u32 place = settings->next_size;

	if (place >= LAB_MAX_SIZES)
		return -1;
	settings->next_size = place + 1 < settings->size_count ? place + 1 : 0;
	return bpf_xdp_adjust_tail(ctx, (int)settings->sizes[place] - (int)settings->given_size);
}

SEC("xdp")
int l2fwd_lab_send(struct xdp_md *ctx)
{
	struct lab_settings *settings;
	struct lab_packet *packet;
	__u32 zero = 0;
	__u64 now;

	settings = bpf_map_lookup_elem(&lab_settings, &zero);
	if (!settings)
		return XDP_ABORTED; /* cannot happen: the array has one entry */
	now = settings->interval_ns || settings->is_stamped ? bpf_ktime_get_ns() : 0;
	if (!is_due(settings, now))
		return XDP_DROP;
	if (settings->size_count && resize(settings, ctx))
		return XDP_ABORTED;
	packet = (void *)(long)ctx->data;
	if ((void *)(packet + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(packet->header, settings->header, LAB_HEADER_BYTES);
	if (settings->flows)
		write_flow(settings, packet);
	if (settings->is_stamped) {
		packet->stamp.sequence = settings->sent;
		packet->stamp.sent_ns = now;
	}
	settings->sent++;
	return XDP_TX;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
