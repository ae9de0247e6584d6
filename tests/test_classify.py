"""The classifier: its key, its search and its rewriting, against slow and obvious ones."""

import itertools
import random
import struct

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from l2fwd._classify import Classifier
from l2fwd.errors import ConfigError
from l2fwd.rule_table import ACTION, MAX_MASKS, VERDICTS, compile_rules
from l2fwd.rules import Action, Match, Rule, RuleTable, parse_rules
from tests import oracle
from tests.small_world import LINKS, A, B, random_frame
from tests.test_rule_keys import frame_key, tables

NO_RANK = 0xFFFFFFFF
TTL = "any -> out eth1 dec_ttl"
MACS = bytes.fromhex("02000000000a 02000000000b")
BARE = Classifier([], {})


def assert_same_key(frame, in_ifindex=3):
    assert BARE.key(frame, in_ifindex) == frame_key(in_ifindex, frame), frame.hex()


def compiled(table, miss="pass"):
    found = compile_rules(table.ranked(), LINKS, 1 << 20)
    return Classifier(found.masks, found.entries, miss)


def action(rank):
    return ACTION.pack(rank, rank, 4, VERDICTS["drop"], 0, 0, bytes(6), bytes(6))


def ranks_of(classifier, keys):
    """Classify keys given as rows, or as bytes."""
    rows = keys if isinstance(keys, np.ndarray) else np.frombuffer(b"".join(keys), np.uint8)
    ranks = np.full(rows.size // 64, 7, np.uint32)
    classifier.classify(rows.reshape(-1, 64), ranks)
    return ranks


# The key


@given(st.integers(0, 2**32), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=500)
def test_the_key_of_a_random_frame_is_the_references(seed, in_ifindex):
    assert_same_key(random_frame(random.Random(seed)), in_ifindex)


def extension(kind, following, size):
    """An IPv6 extension header of the least length and ``size`` units more."""
    if kind == 44:
        return struct.pack(">BBHI", following, 0, 0, 1)
    length = 4 * (size + 2) if kind == 51 else 8 * (size + 1)
    return bytes([following, size]) + bytes(length - 2)


def chain(kinds, payload, proto=6):
    for kind in reversed(kinds):
        payload, proto = extension(kind, proto, kind & 1) + payload, kind
    return bytes(IPv6(nh=proto)) + payload


TAGS = [b"", b"\x81\x00\x20\x07", b"\x88\xa8\x00\x00\x91\x00\x0f\xff", b"\x81\x00\x00\x01" * 5]
PORTS = bytes(TCP(sport=7, dport=80))
PACKETS = {
    "ipv4": (0x0800, bytes(IP() / TCP(dport=80))),
    "options": (0x0800, bytes(IP(options=b"\x01" * 40, proto=17)) + PORTS),
    "fragment": (0x0800, bytes(IP(frag=1, proto=6)) + PORTS),
    "ipv6": (0x86DD, chain([], PORTS)),
    "all": (0x86DD, chain([0, 43, 60, 51, 44], PORTS)),
    "eight": (0x86DD, chain([0, 60] * 4, PORTS)),
    "nine": (0x86DD, chain([0, 60] * 4 + [43], PORTS)),
    "later": (0x86DD, chain([60, 44], PORTS).replace(b"\0\0\0\0\0\1", b"\0\x08\0\0\0\1", 1)),
}


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS)
@pytest.mark.parametrize("tags", TAGS, ids=["none", "one", "two", "five"])
def test_the_key_of_every_cut_is_the_references(tags, packet):
    """P1, P3, P5, P6"""
    ethertype, payload = packet
    frame = MACS + tags + struct.pack(">H", ethertype) + payload
    for length in range(len(frame) + 1):
        assert_same_key(frame[:length])


def test_no_frame_shorter_than_a_header_has_a_key():
    assert [BARE.key(bytes(length), 3) is None for length in range(16)] == [True] * 14 + [False] * 2


def test_the_key_under_every_ethertype_at_every_depth_of_tags_is_the_references():
    """P7"""
    rest = bytes(IP(proto=17) / UDP()) + bytes(20)
    for tags in TAGS[:3]:
        for ethertype in range(1 << 16):
            assert_same_key(MACS + tags + ethertype.to_bytes(2, "big") + rest)


def test_the_key_under_every_proto_is_the_references():
    """P7"""
    for proto in range(256):
        assert_same_key(bytes(Ether() / IP(proto=proto) / PORTS))
        assert_same_key(bytes(Ether() / IPv6(nh=proto) / PORTS))


def test_the_key_under_every_header_length_version_and_total_length_is_the_references():
    """P2, P4"""
    for first, total, fragment, size in itertools.product(
        range(256), (0, 19, 20, 24, 60, 61, 65535), (0, 0x2000, 0x4000, 1, 0x1FFF), (20, 59, 64)
    ):
        header = struct.pack(">BxHxxHBB10x", first, total, fragment, 64, 17)
        assert_same_key(MACS + b"\x08\x00" + (header + bytes(range(64)))[:size])


# What becomes of a frame


REWRITES = [
    Action(
        kind="out", out_link="eth1", swap_mac=swap, set_src_mac=src, set_dst_mac=dst,
        pop_vlan=pop, push_vlan=push, dec_ttl=ttl,
    )
    for swap, src, dst, pop, push, ttl in itertools.product(
        (False, True), (None, A), (None, B), (False, True), (None, 4094), (False, True)
    )
]  # fmt: skip
OTHERS = [Action(kind=kind) for kind in ("drop", "pass", "user")]


@pytest.mark.parametrize("given_action", REWRITES + OTHERS, ids=str)
def test_every_action_gives_the_oracles_verdict_and_bytes(given_action):
    classifier, rng = compiled(RuleTable([Rule(Match(), given_action)]), "user"), random.Random(1)
    for _ in range(150):
        frame = random_frame(rng).ljust(14, b"\0")
        if oracle.is_link_local(frame[:6]):
            expected = ("user", frame, None)
        else:
            expected = (*oracle.apply(given_action, frame), 0)
        assert classifier.decide(frame, 3) == expected, frame.hex()


@given(tables(), st.sampled_from(["pass", "drop", "user"]), st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_a_table_gives_the_oracles_rule_verdict_and_bytes(table, miss, seed):
    try:
        classifier = compiled(table, miss)
    except ConfigError as error:
        assume("different masks" not in str(error))  # port ranges may take too many
        raise
    rng, ranked = random.Random(seed), table.ranked()
    for _ in range(40):
        frame, link = random_frame(rng).ljust(14, b"\0"), rng.choice(sorted(LINKS))
        rule = oracle.classify(table, link, frame)
        verdict, after, rank = classifier.decide(frame, LINKS[link])
        assert (verdict, after) == (oracle.apply(rule.action, frame) if rule else (miss, frame))
        assert (None if rank is None else ranked[rank]) == rule


def ones_complement_sum(header):
    return (sum(struct.unpack(">10H", header)) - 1) % 0xFFFF + 1


@pytest.mark.parametrize("ttl", [2, 64, 255])
def test_the_checksum_is_right_again_whatever_it_was_and_every_other_byte_stays(ttl):
    """P12: all identifications, so all checksums; payloads of even and odd length."""
    classifier, payload, seen = compiled(parse_rules(TTL)), b"odd bytes", set()
    for number in range(1 << 16):
        header = struct.pack(">BBHHHBBH8x", 0x45, 0, 31, number, 0, ttl, 17, 0)
        total = ones_complement_sum(header) ^ 0xFFFF
        header = header[:10] + total.to_bytes(2, "big") + header[12:]
        frame = MACS + b"\x08\x00" + header + payload[: number % 10]
        verdict, after, _ = classifier.decide(frame, 3)
        assert verdict == "out"
        assert ones_complement_sum(after[14:34]) == 0xFFFF, frame.hex()
        assert after == frame[:22] + bytes([ttl - 1]) + frame[23:24] + after[24:26] + frame[26:]
        seen.add(after[24:26])
    assert len(seen) == 65535


@pytest.mark.parametrize("wrong", [0x0000, 0x0001, 0x00FF, 0xFEFF, 0xFF00, 0xFFFE, 0xFFFF])
def test_a_wrong_checksum_stays_wrong_as_the_oracles_does(wrong):
    """P12"""
    classifier, (rule,) = compiled(parse_rules(TTL)), parse_rules(TTL)
    for ttl, tags, size in itertools.product((0, 1, 2, 255), (0, 1, 2), (0, 1, 2, 3)):
        packet = bytes(IP(ttl=ttl, chksum=wrong) / bytes(size))
        frame = MACS + b"\x81\x00\x00\x07" * tags + b"\x08\x00" + packet
        assert classifier.decide(frame, 3)[:2] == oracle.apply(rule.action, frame)


# The search


def random_entries(rng, count, mask):
    """Return keys under a mask, all different, as rows."""
    keys = rng.integers(256, size=(count, 64), dtype=np.uint8) & mask
    return np.unique(keys, axis=0)


def table_of(masks, keys):
    """Make a classifier of keys per mask; ranks go up from 0, mask by mask."""
    entries, heads = {}, []
    for place, (mask, rows) in enumerate(zip(masks, keys, strict=True)):
        heads.append((mask.tobytes(), len(entries)))
        for row in rows:
            entries[place, row.tobytes()] = action(len(entries))
    return Classifier(heads, entries)


@pytest.mark.parametrize("looked_at", [5, 19, 37, 64], ids="{}-bytes".format)
def test_of_100_000_entries_each_is_found_and_nothing_else_is(looked_at):
    rng = np.random.default_rng(looked_at)
    mask = np.zeros(64, np.uint8)
    mask[rng.choice(64, looked_at, replace=False)] = 0xFF
    keys = random_entries(rng, 100_000, mask)
    classifier = table_of([mask], [keys])
    assert len(classifier) == len(keys) > 99_000
    noise = rng.integers(256, size=keys.shape, dtype=np.uint8) & ~mask
    assert np.array_equal(ranks_of(classifier, keys | noise), np.arange(len(keys)))
    absent = random_entries(rng, 100_000, mask)
    known = set(map(bytes, keys))
    expected = [bytes(row) in known for row in absent]
    assert np.array_equal(ranks_of(classifier, absent) != NO_RANK, expected)
    for byte in np.flatnonzero(mask):
        other = keys[:1000].copy()
        other[:, byte] ^= 1
        near = [bytes(row) in known for row in other]
        assert np.array_equal(ranks_of(classifier, other) != NO_RANK, near)


def test_of_64_masks_each_is_searched_and_the_least_rank_wins():
    rng = np.random.default_rng(1)
    masks = rng.choice([0, 0, 0xFF], size=(MAX_MASKS, 64)).astype(np.uint8)
    whole = rng.integers(256, size=(MAX_MASKS, 20, 64), dtype=np.uint8)
    classifier = table_of(masks, [rows & mask for rows, mask in zip(whole, masks, strict=True)])
    order = rng.permutation(MAX_MASKS * 20)
    assert np.array_equal(ranks_of(classifier, whole.reshape(-1, 64)[order]), order)
    last = table_of(np.zeros((MAX_MASKS, 64), np.uint8), [np.zeros((1, 64), np.uint8)] * MAX_MASKS)
    assert set(ranks_of(last, whole[0])) == {0}
    with pytest.raises(ConfigError, match="65 masks, 64 are possible"):
        Classifier([(bytes(64), 0)] * 65, {})


few_bytes = st.sampled_from([b"\0", b"\0", b"\x01", b"\xff"])
sparse = st.lists(few_bytes, min_size=64, max_size=64).map(b"".join)


@given(
    st.lists(sparse, min_size=1, max_size=6, unique=True), st.integers(1, 40), st.integers(0, 2**32)
)
@settings(deadline=None, max_examples=200)
def test_masked_equality_and_the_least_rank_are_all_that_counts(masks, count, seed):
    rng = random.Random(seed)

    def random_key():
        return bytes(rng.choice([0, 0, 1, 255]) if rng.random() < 0.3 else 0 for _ in range(64))

    def masked(key, mask):
        return bytes(a & b for a, b in zip(key, mask, strict=True))

    rank_of = {(mask, masked(random_key(), mask)): 0 for mask in masks for _ in range(count)}
    best = {}
    for rank, entry in enumerate(rng.sample(list(rank_of), len(rank_of))):
        rank_of[entry] = rank
        best.setdefault(entry[0], rank)
    places = {mask: place for place, mask in enumerate(best)}
    entries = {(places[mask], key): action(rank) for (mask, key), rank in rank_of.items()}
    keys = [random_key() for _ in range(150)]
    expected = [
        min(rank_of.get((mask, masked(key, mask)), NO_RANK) for mask in masks) for key in keys
    ]
    assert ranks_of(Classifier(list(best.items()), entries), keys).tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 127, 128, 129])
def test_bursts_of_any_size_are_whole(count):
    mask = np.full(64, 0xFF, np.uint8)
    keys = random_entries(np.random.default_rng(2), 200, mask)
    classifier = table_of([mask], [keys])
    ranks = np.full(200, 7, np.uint32)
    classifier.classify(keys[:count], ranks)
    assert ranks.tolist() == [*range(count), *[7] * (200 - count)]


@pytest.mark.parametrize("count", [1, 64, 100])
def test_frames_are_classified_as_decide_does(count):
    table = parse_rules("src 10.0.0.0/8 -> drop\nproto udp -> pass\nvlan 7 -> out eth1")
    classifier, rng = compiled(table), random.Random(3)
    frames = [random_frame(rng).ljust(70, b"\0")[:70] for _ in range(count)]
    ranks = np.zeros(count, np.uint32)
    classifier.classify_frames(np.frombuffer(b"".join(frames), np.uint8).reshape(-1, 70), 3, ranks)
    found = [None if rank == NO_RANK else rank for rank in ranks.tolist()]
    assert found == [classifier.decide(frame, 3)[2] for frame in frames]


def test_many_frames_show_what_each_shows_by_itself():
    rng = random.Random(4)
    frames = [random_frame(rng).ljust(70, b"\0")[:70] for _ in range(50)]
    keys = np.full((51, 64), 7, np.uint8)
    BARE.parse_frames(np.frombuffer(b"".join(frames), np.uint8).reshape(-1, 70), 3, keys)
    assert [key.tobytes() for key in keys[:50]] == [BARE.key(frame, 3) for frame in frames]
    assert set(keys[50].tolist()) == {7}


@pytest.mark.parametrize(("length", "shape"), [(13, (2, 64)), (60, (1, 64)), (60, (2, 63))])
def test_keys_of_another_shape_are_refused(length, shape):
    with pytest.raises(ConfigError, match="must have shape"):
        BARE.parse_frames(np.zeros((2, length), np.uint8), 3, np.zeros(shape, np.uint8))


def test_an_empty_table_takes_nothing_and_actions_are_given_back():
    assert set(ranks_of(BARE, [bytes(64)] * 3)) == {NO_RANK}
    assert BARE.decide(MACS + b"\x08\x06", 3) == ("pass", MACS + b"\x08\x06", None)
    assert BARE.decide(MACS, 3) == ("pass", MACS, None)
    assert BARE.actions() == b""
    mask = np.full(64, 0xFF, np.uint8)
    classifier = table_of([mask], [random_entries(np.random.default_rng(4), 9, mask)])
    assert classifier.actions() == b"".join(map(action, range(9)))


@pytest.mark.parametrize(
    ("masks", "entries", "options", "said"),
    [
        ([(bytes(63), 0)], {}, {}, "a mask has 64 bytes"),
        ([], {}, {"flow_mask": bytes(65)}, "a mask has 64 bytes"),
        ([(bytes(64), 0)], {(0, bytes(63)): action(0)}, {}, "a key has 64 bytes, an action 32"),
        ([(bytes(64), 0)], {(0, bytes(64)): bytes(31)}, {}, "a key has 64 bytes, an action 32"),
        ([(bytes(64), 0)], {(1, bytes(64)): action(0)}, {}, "under mask 1, there are 1"),
        ([(bytes(64), 0)], {(-1, bytes(64)): action(0)}, {}, "under mask -1, there are 1"),
    ],
)
def test_wrong_sizes_are_refused(masks, entries, options, said):
    with pytest.raises(ConfigError, match=said):
        Classifier(masks, entries, **options)


@pytest.mark.parametrize(
    ("method", "rows", "width", "rank_count"),
    [
        ("classify", 2, 63, 2),
        ("classify", 2, 64, 1),
        ("classify_frames", 2, 13, 2),
        ("classify_frames", 2, 60, 1),
    ],
)
def test_arrays_of_another_shape_are_refused(method, rows, width, rank_count):
    arrays = [np.zeros((rows, width), np.uint8), np.zeros(rank_count, np.uint32)]
    if method == "classify_frames":
        arrays.insert(1, 3)
    with pytest.raises(ConfigError, match="must have shape"):
        getattr(BARE, method)(*arrays)
