/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Data path afxdp: every packet goes to the AF_XDP socket of its RX queue, but those that are
 * meant for the next bridge.
 */
#include "to_socket.h"

#include <xdp/xdp_helpers.h>

/* libxdp's dispatcher: run after filters (default priority 50), go on when we pass. */
struct {
	__uint(priority, 60);
	__uint(XDP_PASS, 1);
} XDP_RUN_CONFIG(l2fwd_afxdp);

SEC("xdp.frags")
int l2fwd_afxdp(struct xdp_md *ctx)
{
	return to_socket(ctx);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
