/* Flows into a map of the kernel, as a C programmer writes it, one system call each; and the loop
 * that hands the same flows in bursts to ours.  Built and driven by micro_flows.py.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <linux/bpf.h>
#include <sys/syscall.h>

/* Ours: inserts @count flows, and tells how many were; 0 or -errno. */
typedef int (*insert_function)(int fd, const void *keys, const void *values, uint32_t *count);

static int update(int fd, const void *key, const void *value)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = fd;
	attr.key = (uintptr_t)key;
	attr.value = (uintptr_t)value;
	return syscall(__NR_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof(attr)) ? -errno : 0;
}

/* Both return how many of @count are in the map. */
uint32_t reference_one_by_one(int fd, const uint64_t *keys, const uint8_t *flows,
			      uint32_t flow_bytes, uint32_t count)
{
	uint32_t inserted = 0;

	for (uint32_t i = 0; i < count; i++)
		inserted += !update(fd, &keys[i], flows + (size_t)i * flow_bytes);
	return inserted;
}

uint32_t reference_in_bursts(insert_function insert, int fd, const uint64_t *keys,
			     const uint8_t *flows, uint32_t flow_bytes, uint32_t count,
			     uint32_t burst)
{
	uint32_t inserted = 0;

	for (uint32_t first = 0; first < count; first += burst) {
		uint32_t wanted = count - first < burst ? count - first : burst;

		insert(fd, &keys[first], flows + (size_t)first * flow_bytes, &wanted);
		inserted += wanted;
	}
	return inserted;
}
