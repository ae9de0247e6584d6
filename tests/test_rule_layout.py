"""Where the rules of a version are put: each where the kernel looks for it, none over another."""

from l2fwd.rule_layout import (
    NEAR_BITS,
    NEAR_PROBES,
    U32,
    hash_key,
    version_maps,
)
from l2fwd.rule_table import compile_rules
from l2fwd.rules import parse_rules

IFINDEXES = {"eth0": 3, "eth1": 4}
SIZE = 1 << NEAR_BITS


def lay_out(text, generation=1, taken=()):
    """Return the keys near by place, and the keys far, of one version."""
    rules = parse_rules(text).ranked()
    compiled = compile_rules(rules, IFINDEXES, 1 << 17)
    maps = version_maps(rules, IFINDEXES, compiled, generation, taken, "pass")
    (table,) = maps["tables"].values()
    near = {U32.unpack(place)[0]: rule[:72] for place, rule in maps["near_rules"].items()}
    assert U32.unpack(table[8:])[0] == (not maps["rules"])
    return near, list(maps["rules"])


def many(count):
    return "".join(f"dst 10.{i >> 8}.{i & 255}.1 -> drop\n" for i in range(count))


def test_a_near_rule_is_where_the_kernel_looks_for_it():
    near, far = lay_out(many(500) + "src 10.0.0.0/8 dport 1-65534 proto udp -> drop")
    assert len(near) == len(set(near.values())) == 500 + 30
    assert far == []
    for place, key in near.items():
        assert (place - (hash_key(key) >> (64 - NEAR_BITS))) % SIZE < NEAR_PROBES


def test_a_table_that_finds_no_room_is_far_with_all_its_rules():
    near, far = lay_out("dport 1-65534 proto udp -> drop\n" + many(5000))
    assert (len(near), len(far)) == (0, 5030)


def test_two_versions_share_no_place_and_no_key():
    near, _ = lay_out(many(500), 6)
    beside, _ = lay_out(many(500), 7, near)
    assert len(near) == len(beside) == 500
    assert not near.keys() & beside.keys()
    assert not set(near.values()) & set(beside.values())


def test_keys_that_differ_in_a_few_high_bits_have_different_hashes():
    """Hosts of two IPv6 networks differ in the last byte of a word each."""
    pairs = "".join(
        f"src fd00::{i:x} dst fd01::{j:x} -> drop\n" for i in range(64) for j in range(64)
    )
    near, far = lay_out(pairs)
    keys = [*near.values(), *far]
    assert len({hash_key(key) for key in keys}) == len(keys) == 64 * 64
    assert len({hash_key(key) >> (64 - NEAR_BITS) for key in keys}) > SIZE // 2
