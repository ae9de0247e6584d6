/* Rule look-up as a C programmer writes it: parse a packet, then for each mask one look-up in an
 * open hash table, one packet at a time.  Built and driven by micro_classify.py and micro_parse.py.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <sys/mman.h>

#define KEY_WORDS 8
#define NO_VLAN 0xffff
#define NO_RANK 0xffffffffu
#define HAS_PORTS 1
#define LINK_LOCAL 2
#define MAX_EXTENSION_HEADERS 8
#define HUGE_PAGE_BYTES (2 << 20)

struct key { /* struct packet_key of kern/l2fwd.h */
	uint32_t in_ifindex;
	uint8_t dst_mac[6], src_mac[6];
	uint16_t ethertype, vlan_outer, vlan_inner;
	uint8_t proto, ip_version;
	uint16_t sport, dport;
	uint8_t flags, zero[3];
	uint8_t src[16], dst[16];
};

union words {
	struct key key;
	uint64_t word[KEY_WORDS];
};

struct entry {
	union words key;
	uint32_t rank;
	uint32_t used;
};

struct table { /* of one mask */
	union words mask;
	struct entry *entries; /* twice as many as are used */
	uint64_t size;
	uint32_t best_rank;
};

struct reference {
	struct table *tables; /* ascending by best rank */
	uint32_t table_count;
};

/* --- parsing --- */

static bool is_vlan(uint16_t ethertype)
{
	return ethertype == 0x8100 || ethertype == 0x88a8 || ethertype == 0x9100;
}

static uint16_t read_be16(const uint8_t *data)
{
	uint16_t number;

	memcpy(&number, data, 2);
	return ntohs(number);
}

static void parse_ports(const uint8_t *data, const uint8_t *end, struct key *key)
{
	if (key->proto != 6 && key->proto != 17 && key->proto != 132 && key->proto != 136)
		return;
	if (end - data < 4)
		return;
	memcpy(&key->sport, data, 2);
	memcpy(&key->dport, data + 2, 2);
	key->flags |= HAS_PORTS;
}

static void parse_ipv4(const uint8_t *data, const uint8_t *end, struct key *key)
{
	uint32_t length;

	if (end - data < 20 || data[0] >> 4 != 4)
		return;
	length = (data[0] & 15) * 4;
	if (length < 20 || end - data < length || read_be16(data + 2) < length)
		return;
	key->ip_version = 4;
	key->proto = data[9];
	memcpy(key->src, data + 12, 4);
	memcpy(key->dst, data + 16, 4);
	if (!(read_be16(data + 6) & 0x1fff))
		parse_ports(data + length, end, key);
}

/* Bytes of an extension header; 0 if it is none. */
static uint32_t extension_length(uint8_t proto, const uint8_t *data)
{
	switch (proto) {
	case 0:	 /* hop by hop */
	case 43: /* routing */
	case 60: /* destination options */
		return (data[1] + 1) * 8;
	case 44: /* fragment */
		return 8;
	case 51: /* authentication */
		return (data[1] + 2) * 4;
	}
	return 0;
}

static void parse_ipv6(const uint8_t *data, const uint8_t *end, struct key *key)
{
	uint8_t proto;

	if (end - data < 40 || data[0] >> 4 != 6)
		return;
	key->ip_version = 6;
	memcpy(key->src, data + 8, 16);
	memcpy(key->dst, data + 24, 16);
	proto = data[6];
	data += 40;
	for (int i = 0; i < MAX_EXTENSION_HEADERS && end - data >= 4; i++) {
		uint32_t length = extension_length(proto, data);

		if (!length || end - data < length)
			break;
		if (proto == 44 && read_be16(data + 2) & 0xfff8) {
			key->proto = data[0]; /* a later fragment has no ports */
			return;
		}
		proto = data[0];
		data += length;
	}
	key->proto = proto;
	parse_ports(data, end, key);
}

static void parse(const uint8_t *data, uint32_t length, uint32_t in_ifindex, struct key *key)
{
	const uint8_t *end = data + length;
	uint16_t ethertype = read_be16(data + 12);

	memset(key, 0, sizeof(*key));
	key->in_ifindex = in_ifindex;
	memcpy(key->dst_mac, data, 6);
	memcpy(key->src_mac, data + 6, 6);
	if (!memcmp(data, "\x01\x80\xc2\0\0", 5) && data[5] <= 15)
		key->flags |= LINK_LOCAL;
	key->vlan_outer = key->vlan_inner = NO_VLAN;
	data += 14;
	if (is_vlan(ethertype) && end - data >= 4) {
		key->vlan_outer = htons(read_be16(data) & 0x0fff);
		ethertype = read_be16(data + 2);
		data += 4;
		if (is_vlan(ethertype) && end - data >= 4) {
			key->vlan_inner = htons(read_be16(data) & 0x0fff);
			ethertype = read_be16(data + 2);
			data += 4;
		}
	}
	key->ethertype = htons(ethertype);
	if (ethertype == 0x0800)
		parse_ipv4(data, end, key);
	else if (ethertype == 0x86dd)
		parse_ipv6(data, end, key);
}

void reference_parse(const uint8_t *frames, uint32_t length, uint32_t count, uint32_t in_ifindex,
		     struct key *keys)
{
	for (uint32_t i = 0; i < count; i++)
		parse(frames + (size_t)i * length, length, in_ifindex, &keys[i]);
}

/* --- look-up --- */

static uint64_t hash(const union words *key)
{
	uint64_t hashed = 0;

	for (int i = 0; i < KEY_WORDS; i++) {
		hashed = (hashed ^ key->word[i]) * 0x9e3779b97f4a7c15ULL;
		hashed ^= hashed >> 32;
	}
	return hashed;
}

static struct entry *find(const struct table *table, const union words *key)
{
	uint64_t slot = hash(key) & (table->size - 1);

	while (table->entries[slot].used && memcmp(&table->entries[slot].key, key, sizeof(*key)))
		slot = (slot + 1) & (table->size - 1);
	return &table->entries[slot];
}

static uint32_t look_up(const struct reference *reference, const union words *key)
{
	uint32_t rank = NO_RANK;

	for (uint32_t i = 0; i < reference->table_count; i++) {
		const struct table *table = &reference->tables[i];
		const struct entry *entry;
		union words masked;

		if (table->best_rank > rank)
			break;
		for (int j = 0; j < KEY_WORDS; j++)
			masked.word[j] = key->word[j] & table->mask.word[j];
		entry = find(table, &masked);
		if (entry->used && entry->rank < rank)
			rank = entry->rank;
	}
	return rank;
}

void reference_keys(const struct reference *reference, const union words *keys, uint32_t count,
		    uint32_t *ranks)
{
	for (uint32_t i = 0; i < count; i++)
		ranks[i] = look_up(reference, &keys[i]);
}

void reference_frames(const struct reference *reference, const uint8_t *frames, uint32_t length,
		      uint32_t count, uint32_t in_ifindex, uint32_t *ranks)
{
	for (uint32_t i = 0; i < count; i++) {
		union words key;

		parse(frames + (size_t)i * length, length, in_ifindex, &key.key);
		ranks[i] = look_up(reference, &key);
	}
}

/* --- the table --- */

struct reference *reference_open(uint32_t table_count)
{
	struct reference *reference = calloc(1, sizeof(*reference));

	if (!reference)
		abort();
	reference->tables = calloc(table_count, sizeof(*reference->tables));
	if (!reference->tables)
		abort();
	return reference;
}

/* Of huge pages, as ours is. */
static void *allocate(size_t size)
{
	void *memory;

	if (posix_memalign(&memory, HUGE_PAGE_BYTES, size))
		abort();
	if (size >= HUGE_PAGE_BYTES)
		madvise(memory, size, MADV_HUGEPAGE);
	return memset(memory, 0, size);
}

/* Adds the table of the next mask: @keys are masked, and their ranks go up from @rank. */
void reference_add(struct reference *reference, const union words *mask, const union words *keys,
		   uint32_t count, uint32_t rank)
{
	struct table *table = &reference->tables[reference->table_count++];

	table->mask = *mask;
	table->best_rank = rank;
	for (table->size = 2; table->size < 2 * (uint64_t)count; table->size *= 2)
		;
	table->entries = allocate(table->size * sizeof(*table->entries));
	for (uint32_t i = 0; i < count; i++) {
		struct entry *entry = find(table, &keys[i]);

		*entry = (struct entry){.key = keys[i], .rank = rank + i, .used = 1};
	}
}

void reference_close(struct reference *reference)
{
	for (uint32_t i = 0; i < reference->table_count; i++)
		free(reference->tables[i].entries);
	free(reference->tables);
	free(reference);
}
