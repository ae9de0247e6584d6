/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Where packets of a queue go up: user space puts its sockets there. */
#ifndef L2FWD_SOCKETS_H
#define L2FWD_SOCKETS_H

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);	 /* RX queue id */
	__type(value, __u32);	 /* AF_XDP socket */
	__uint(max_entries, 64); /* set to the link's queue count before loading */
} sockets SEC(".maps");

#endif
