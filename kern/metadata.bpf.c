/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* As afxdp, and what the driver knows about a packet goes with it, right in front of its data. Only
 * a program bound to one link may ask the driver.
 */
#include "to_socket.h"

/* Of the driver; since Linux 6.3, the tag since 6.8.  The names are the kernel's. */
enum xdp_rss_hash_type {
	XDP_RSS_TYPE_NONE = 0,
};

extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym __weak;
extern int bpf_xdp_metadata_rx_hash(const struct xdp_md *ctx, __u32 *hash,
				    enum xdp_rss_hash_type *type) __ksym __weak;
extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __be16 *proto,
					__u16 *tci) __ksym __weak;

/* enum rx_metadata_flag of what the driver tells; the calls for the rest are no code by then. */
const volatile __u32 told = 0;

static __always_inline void ask_driver(struct xdp_md *ctx, struct rx_metadata *found)
{
	enum xdp_rss_hash_type type;

	/* Without a clock a veth tells the time 0. */
	if (told & RX_HAS_TIMESTAMP && !bpf_xdp_metadata_rx_timestamp(ctx, &found->timestamp_ns) &&
	    found->timestamp_ns)
		found->has |= RX_HAS_TIMESTAMP;
	if (told & RX_HAS_HASH && !bpf_xdp_metadata_rx_hash(ctx, &found->hash, &type)) {
		found->hash_type = type;
		found->has |= RX_HAS_HASH;
	}
	if (told & RX_HAS_VLAN_TAG &&
	    !bpf_xdp_metadata_rx_vlan_tag(ctx, &found->vlan_proto, &found->vlan_tci))
		found->has |= RX_HAS_VLAN_TAG;
}

/* Metadata of another link's program may be there: the kernel has room for 32 bytes at least, and
 * sockets look right before the data.  A function of its own, for its types are in the BTF then.
 */
static __noinline void write_in_front(struct xdp_md *ctx, const struct rx_metadata *found)
{
	int others = ctx->data - ctx->data_meta;
	struct rx_metadata *metadata;

	if (others > 0 && bpf_xdp_adjust_meta(ctx, others))
		return;
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*metadata)))
		return;
	metadata = (void *)(long)ctx->data_meta;
	if ((void *)(metadata + 1) <= (void *)(long)ctx->data)
		*metadata = *found;
}

SEC("xdp.frags")
int l2fwd_metadata(struct xdp_md *ctx)
{
	struct rx_metadata found = {}; /* all zero, or it would be a second constant beside told */
	int verdict = to_socket(ctx);

	/* The host would find it in its packet, too. */
	if (verdict == XDP_REDIRECT) {
		found.has = RX_METADATA_MAGIC;
		ask_driver(ctx, &found);
		write_in_front(ctx, &found);
	}
	return verdict;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
