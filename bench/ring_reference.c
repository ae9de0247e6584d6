/* The forwarding loop as a C programmer writes it over libxdp's xsk.h, and the kernel that
 * both this loop and ours run against.  Built and driven by micro_rings.py.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <linux/if_xdp.h>
#include <xdp/xsk.h>

/* For micro_instructions.py; a few instructions without effect outside of valgrind. */
#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#define CALLGRIND_START_INSTRUMENTATION
#define CALLGRIND_STOP_INSTRUMENTATION
#endif

#define ETHERNET_HEADER_BYTES 14

struct ring_memory {
	uint32_t *producer;
	uint32_t *consumer;
	uint32_t *flags;
	void *slots;
	uint64_t size;
};

struct queue_memory {
	struct ring_memory fill, completion, rx, tx;
};

/* --- the kernel: does its work once in many kicks, and keeps the time it took --- */

static struct {
	const struct queue_memory *queues; /* two */
	uint64_t packets_left;		   /* to let arrive, both queues together */
	uint32_t packets_per_visit;	   /* on each queue */
	uint32_t kicks_per_visit;
	uint32_t kicks;
	uint64_t busy_ns;
	void (*finished)(void);
} kernel;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void complete_all(const struct queue_memory *queue)
{
	const struct xdp_desc *tx = queue->tx.slots;
	uint64_t *completion = queue->completion.slots;
	uint32_t last = __atomic_load_n(queue->tx.producer, __ATOMIC_ACQUIRE);
	uint32_t from = *queue->tx.consumer;
	uint32_t to = *queue->completion.producer;

	for (; from != last; from++, to++)
		completion[to & (queue->completion.size - 1)] =
			tx[from & (queue->tx.size - 1)].addr;
	__atomic_store_n(queue->completion.producer, to, __ATOMIC_RELEASE);
	__atomic_store_n(queue->tx.consumer, from, __ATOMIC_RELEASE);
}

static void deliver(const struct queue_memory *queue, uint32_t count)
{
	const uint64_t *fill = queue->fill.slots;
	struct xdp_desc *rx = queue->rx.slots;
	uint32_t from = *queue->fill.consumer;
	uint32_t to = *queue->rx.producer;
	uint32_t lent = __atomic_load_n(queue->fill.producer, __ATOMIC_ACQUIRE) - from;

	if (lent < count)
		abort(); /* the loop under test lost frames: its time means nothing */
	for (uint32_t i = 0; i < count; i++, from++, to++)
		rx[to & (queue->rx.size - 1)] = (struct xdp_desc){
			.addr = fill[from & (queue->fill.size - 1)] + 256,
			.len = 60,
		};
	__atomic_store_n(queue->fill.consumer, from, __ATOMIC_RELEASE);
	__atomic_store_n(queue->rx.producer, to, __ATOMIC_RELEASE);
}

static __attribute__((noinline)) void kernel_visit(void)
{
	uint64_t began = now_ns();
	uint32_t count = kernel.packets_per_visit;

	complete_all(&kernel.queues[0]);
	complete_all(&kernel.queues[1]);
	if (kernel.packets_left) {
		deliver(&kernel.queues[0], count);
		deliver(&kernel.queues[1], count);
		kernel.packets_left -= 2 * count;
	} else {
		kernel.finished();
	}
	kernel.kicks = 0;
	kernel.busy_ns += now_ns() - began;
}

/* Instructions are counted between the first visit and the last, and not within. */
static __attribute__((noinline)) void interrupt_loop(void)
{
	bool is_last = !kernel.packets_left;

	CALLGRIND_STOP_INSTRUMENTATION;
	kernel_visit();
	if (!is_last)
		CALLGRIND_START_INSTRUMENTATION;
}

/* In place of sendto().  Not inlined: a system call is not either. */
__attribute__((noinline)) int kernel_kick(int fd)
{
	(void)fd;
	if (++kernel.kicks == kernel.kicks_per_visit)
		interrupt_loop();
	return 0;
}

/* The first packets arrive here; @packets is a multiple of 2 * @packets_per_visit. */
void kernel_begin(const struct queue_memory *queues, uint64_t packets, uint32_t packets_per_visit,
		  uint32_t kicks_per_visit, void (*finished)(void))
{
	kernel.queues = queues;
	kernel.packets_left = packets;
	kernel.packets_per_visit = packets_per_visit;
	kernel.kicks_per_visit = kicks_per_visit;
	kernel.finished = finished;
	kernel_visit();
	kernel.busy_ns = 0;
}

uint64_t kernel_busy_ns(void)
{
	return kernel.busy_ns;
}

/* --- the loop --- */

struct pool {
	uint64_t *addrs; /* a stack */
	uint32_t count;
	uint32_t frame_size;
	uint64_t umem_size;
	uint8_t *data;
};

struct counters {
	uint64_t rx_packets, rx_bytes, rx_invalid_drops;
	uint64_t tx_packets, tx_bytes, tx_full_drops, tx_wakeups, rx_wakeups, completion_invalid;
};

struct port {
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons completion, rx;
	struct pool *pool;
	uint32_t fill_target;
	uint32_t rx_lent, tx_lent;
	int fd;
	struct counters counters;
};

struct reference {
	struct port left, right;
	struct pool pool;
	uint32_t batch_size;
	bool swap_mac;
};

static uint32_t stop;

static inline uint32_t min_u32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static void refill(struct port *port)
{
	struct pool *pool = port->pool;
	uint32_t count = min_u32(port->fill_target - port->rx_lent, pool->count);
	uint32_t first;

	if (!count || xsk_ring_prod__reserve(&port->fill, count, &first) != count)
		return;
	pool->count -= count;
	for (uint32_t i = 0; i < count; i++)
		*xsk_ring_prod__fill_addr(&port->fill, first + i) = pool->addrs[pool->count + i];
	xsk_ring_prod__submit(&port->fill, count);
	port->rx_lent += count;
}

static void reclaim(struct port *port)
{
	struct pool *pool = port->pool;
	const uint64_t umem_size = pool->umem_size, mask = ~(uint64_t)(pool->frame_size - 1);
	uint64_t *top = pool->addrs + pool->count;
	uint32_t first, count;

	if (!port->tx_lent)
		return;
	count = xsk_ring_cons__peek(&port->completion, port->tx_lent, &first);
	if (!count)
		return;
	for (uint32_t i = 0; i < count; i++) {
		uint64_t addr = *xsk_ring_cons__comp_addr(&port->completion, first + i);

		if (addr >= umem_size) {
			port->counters.completion_invalid++;
			continue;
		}
		*top++ = addr & mask;
	}
	pool->count = top - pool->addrs;
	xsk_ring_cons__release(&port->completion, count);
	port->tx_lent -= count;
}

static inline bool is_usable(uint64_t umem_size, uint32_t frame_size, struct xdp_desc desc)
{
	return desc.addr < umem_size && desc.len >= ETHERNET_HEADER_BYTES &&
	       desc.len <= frame_size - (desc.addr & (frame_size - 1)) && !desc.options;
}

static inline void swap_macs(uint8_t *data)
{
	uint8_t source[6];

	memcpy(source, data + 6, 6);
	memcpy(data + 6, data, 6);
	memcpy(data, source, 6);
}

static uint32_t forward(struct port *src, struct port *dst, uint32_t batch_size, bool swap_mac)
{
	struct pool *pool = src->pool;
	const uint64_t umem_size = pool->umem_size;
	const uint32_t frame_size = pool->frame_size;
	uint8_t *const data = pool->data;
	uint32_t rx_first, tx_first, received, room, sent = 0, invalid = 0;
	uint64_t rx_bytes = 0, tx_bytes = 0;

	reclaim(dst);
	received = xsk_ring_cons__peek(&src->rx, min_u32(batch_size, src->rx_lent), &rx_first);
	if (!received)
		return 0;
	room = min_u32(xsk_prod_nb_free(&dst->tx, received), received);
	xsk_ring_prod__reserve(&dst->tx, room, &tx_first);
	for (uint32_t i = 0; i < received; i++) {
		struct xdp_desc desc = *xsk_ring_cons__rx_desc(&src->rx, rx_first + i);

		if (__builtin_expect(!is_usable(umem_size, frame_size, desc), 0)) {
			invalid++;
			continue;
		}
		rx_bytes += desc.len;
		if (__builtin_expect(sent == room, 0)) {
			pool->addrs[pool->count++] = desc.addr & ~(uint64_t)(pool->frame_size - 1);
			continue;
		}
		if (swap_mac)
			swap_macs(xsk_umem__get_data(data, desc.addr));
		*xsk_ring_prod__tx_desc(&dst->tx, tx_first + sent) = desc;
		tx_bytes += desc.len;
		sent++;
	}
	dst->tx.cached_prod -= room - sent; /* reserved for packets that were invalid */
	xsk_ring_prod__submit(&dst->tx, sent);
	dst->tx_lent += sent;
	xsk_ring_cons__release(&src->rx, received);
	src->rx_lent -= received;
	refill(src);

	src->counters.rx_packets += received;
	src->counters.rx_bytes += rx_bytes;
	src->counters.rx_invalid_drops += invalid;
	dst->counters.tx_packets += sent;
	dst->counters.tx_bytes += tx_bytes;
	dst->counters.tx_full_drops += received - invalid - sent;
	return received;
}

static void kick_tx(struct port *port)
{
	if (port->tx_lent && xsk_ring_prod__needs_wakeup(&port->tx)) {
		port->counters.tx_wakeups++;
		kernel_kick(port->fd);
	}
}

static void kick_rx(struct port *port)
{
	if (xsk_ring_prod__needs_wakeup(&port->fill)) {
		port->counters.rx_wakeups++;
		kernel_kick(port->fd);
	}
}

static uint32_t turn(struct reference *loop)
{
	uint32_t moved = forward(&loop->left, &loop->right, loop->batch_size, loop->swap_mac);

	kick_tx(&loop->right);
	moved += forward(&loop->right, &loop->left, loop->batch_size, loop->swap_mac);
	kick_tx(&loop->left);
	return moved;
}

void reference_stop(void)
{
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
}

void reference_run(struct reference *loop)
{
	__atomic_store_n(&stop, 0, __ATOMIC_RELAXED);
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		turn(loop);
		kick_rx(&loop->left);
		kick_rx(&loop->right);
	}
	reclaim(&loop->left);
	reclaim(&loop->right);
}

static void open_producer(struct xsk_ring_prod *ring, const struct ring_memory *memory)
{
	ring->producer = memory->producer;
	ring->consumer = memory->consumer;
	ring->flags = memory->flags;
	ring->ring = memory->slots;
	ring->size = memory->size;
	ring->mask = memory->size - 1;
	ring->cached_prod = *memory->producer;
	ring->cached_cons = *memory->consumer + memory->size;
}

static void open_consumer(struct xsk_ring_cons *ring, const struct ring_memory *memory)
{
	ring->producer = memory->producer;
	ring->consumer = memory->consumer;
	ring->flags = memory->flags;
	ring->ring = memory->slots;
	ring->size = memory->size;
	ring->mask = memory->size - 1;
	ring->cached_prod = *memory->producer;
	ring->cached_cons = *memory->consumer;
}

static void open_port(struct port *port, struct pool *pool, const struct queue_memory *memory,
		      uint32_t fill_target)
{
	port->pool = pool;
	port->fill_target = fill_target;
	port->fd = -1;
	open_producer(&port->fill, &memory->fill);
	open_producer(&port->tx, &memory->tx);
	open_consumer(&port->completion, &memory->completion);
	open_consumer(&port->rx, &memory->rx);
	refill(port);
}

struct reference *reference_open(const struct queue_memory *queues, uint8_t *data,
				 uint32_t frame_count, uint32_t frame_size, uint32_t fill_target,
				 uint32_t batch_size, bool swap_mac)
{
	struct reference *loop = calloc(1, sizeof(*loop));
	struct pool *pool;

	if (!loop)
		abort();
	pool = &loop->pool;
	pool->addrs = calloc(frame_count, sizeof(*pool->addrs));
	if (!pool->addrs)
		abort();
	pool->frame_size = frame_size;
	pool->umem_size = (uint64_t)frame_count * frame_size;
	pool->data = data;
	while (pool->count < frame_count) {
		pool->addrs[pool->count] = (uint64_t)(frame_count - 1 - pool->count) * frame_size;
		pool->count++;
	}
	loop->batch_size = batch_size;
	loop->swap_mac = swap_mac;
	open_port(&loop->left, pool, &queues[0], fill_target);
	open_port(&loop->right, pool, &queues[1], fill_target);
	return loop;
}

/* Packets forwarded so far; 0 if any were dropped, or frames are missing. */
uint64_t reference_forwarded(const struct reference *loop, uint32_t frame_count)
{
	const struct port *left = &loop->left, *right = &loop->right;
	uint64_t forwarded = left->counters.tx_packets + right->counters.tx_packets;

	if (forwarded != left->counters.rx_packets + right->counters.rx_packets)
		return 0;
	if (loop->pool.count + left->rx_lent + right->rx_lent + left->tx_lent + right->tx_lent !=
	    frame_count)
		return 0;
	return forwarded;
}

void reference_close(struct reference *loop)
{
	free(loop->pool.addrs);
	free(loop);
}
