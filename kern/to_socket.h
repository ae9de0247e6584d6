/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Every packet to the AF_XDP socket of its RX queue, but those that are meant for the next bridge.
 */
#ifndef L2FWD_TO_SOCKET_H
#define L2FWD_TO_SOCKET_H

#include "counters.h"
#include "parse.h"
#include "sockets.h"

#include <bpf/bpf_helpers.h>

/* The verdict, counted. */
static __always_inline int to_socket(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct datapath_counters *count;
	int verdict;

	count = find_counters();
	if (!count)
		return XDP_ABORTED;

	/* XDP_PASS on a miss: a dead engine never becomes a black hole. */
	verdict = XDP_PASS;
	if ((void *)(eth + 1) <= end && !is_link_local(eth->h_dest))
		verdict = bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
	if (verdict == XDP_REDIRECT)
		count->redirected_packets++;
	else
		count->passed_packets++;
	return verdict;
}

#endif
