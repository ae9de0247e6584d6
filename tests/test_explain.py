"""``rules test`` and ``rules check``: the oracle's verdict, the field that refuses, captures."""

import json
import random
import struct
import warnings
from itertools import chain

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.utils import PcapNgWriter, PcapWriter

from l2fwd.errors import ConfigError
from l2fwd.explain import MAX_REFUSALS, Explainer, read_frames
from l2fwd.pcap import read_capture
from l2fwd.rules import Match, RuleTable, join_rules, parse_rule, parse_rules
from tests import oracle
from tests.small_world import random_frame
from tests.test_bad_input import assert_one_line, run
from tests.test_rule_keys import tables

A, B, C = (f"02:00:00:00:00:0{each}" for each in "abc")
WEB = bytes(Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=9, dport=80))


def explain(text, frame, **settings):
    return Explainer(parse_rules(text), **settings).explain(bytes(frame))


# Against the oracle


@given(tables(), st.sampled_from(["pass", "drop", "user"]), st.integers(0, 2**32))
@settings(deadline=None, max_examples=100)
def test_the_rule_the_verdict_and_the_field_that_refuses_are_the_oracles(table, miss, seed):
    try:
        explainers = {link: Explainer(table, miss, link) for link in table.links()}
    except ConfigError as error:
        assume("different masks" not in str(error))
        raise
    assume(explainers)
    rng, ranked = random.Random(seed), table.ranked()
    for _ in range(20):
        frame, link = random_frame(rng).ljust(14, b"\0"), rng.choice(sorted(explainers))
        told = explainers[link].explain(frame)
        rule = oracle.classify(table, link, frame)
        assert (told.verdict, told.after) == (
            oracle.apply(rule.action, frame) if rule else (miss, frame)
        )
        assert (told.rule.text if told.rule else None) == (str(rule) if rule else None)
        assert told.out_link == (rule.action.out_link if told.verdict == "out" else None)
        above = told.rule.rank if rule else len(table)
        assert len(told.refusals) + told.more == above
        for refusal in told.refusals:
            check_refusal(refusal, ranked[refusal.rule.rank].match, link, oracle.look(frame))


def check_refusal(refusal, match, link, seen):
    """The fields before the one named match, and with it they do not."""
    if not refusal.wanted:
        assert match.dst_mac is None
        assert not oracle.matches(Match(), link, seen)
        return
    words = str(match).split()
    pairs = [list(pair) for pair in zip(words[::2], words[1::2], strict=True)]
    pairs.sort(key=lambda pair: pair[0] != "dst_mac")
    at = pairs.index([refusal.field, refusal.wanted])
    for count, expected in ((at, True), (at + 1, False)):
        text = " ".join(chain(*pairs[:count])) or "any"
        if count or match.dst_mac is None:
            assert oracle.matches(parse_rule(f"{text} -> drop").match, link, seen) is expected


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=300)
def test_what_a_frame_shows_is_a_match_that_takes_it(seed):
    frame = random_frame(random.Random(seed)).ljust(14, b"\0")
    told, seen = explain("in eth0 -> drop", frame), oracle.look(frame)
    text = " ".join(f"{field} {word}" for field, word in told.seen.items())
    if seen.ethertype < 0x0600 or 4095 in seen.vids:  # no rule can name these
        with pytest.raises(ConfigError, match=r"ethertype|vlan"):
            parse_rule(f"{text} -> drop")
        return
    rule = parse_rule(f"{text} -> drop")
    assert oracle.classify(RuleTable([rule]), "eth0", frame) is rule
    assert Explainer(RuleTable([rule])).explain(frame).verdict == "drop"


# In words


@pytest.mark.parametrize(
    ("rule", "frame", "said"),
    [
        ("in eth1 -> drop", WEB, "in is eth0"),
        (f"dst_mac {C} -> drop", WEB, f"dst_mac is {B}"),
        (f"src_mac {C} in eth1 -> drop", WEB, "in is eth0"),
        ("ethertype arp -> drop", WEB, "ethertype is ip"),
        ("vlan 7 -> drop", WEB, "vlan is none"),
        ("vlan 7.8 -> drop", Ether() / Dot1Q(vlan=7) / Dot1Q(vlan=9) / IP(), "vlan is 7.9"),
        ("proto udp -> drop", WEB, "proto is tcp"),
        ("proto 0 -> drop", Ether() / ARP(), "proto is none"),
        ("src 0.0.0.0/0 -> drop", Ether() / IPv6(src="::1"), "src is ::1"),
        ("proto tcp dst 10.0.0.3 -> drop", WEB, "dst is 10.0.0.2"),
        ("proto tcp sport 10-90 dport 80 -> drop", WEB, "sport is 9"),
        ("proto tcp dport 81-65535 -> drop", WEB, "dport is 80"),
        ("proto udp dport 0-65535 -> drop", Ether() / IP(proto=17, frag=1), "dport is none"),
        ("any -> drop", Ether(dst="01:80:c2:00:00:00") / ARP(), "is link-local"),
    ],
)
def test_the_first_field_that_refuses_is_named_with_what_the_frame_shows(rule, frame, said):
    told = explain(f"{rule}\nin eth0 vlan 99 -> drop", frame, in_link="eth0")
    assert told.verdict == "pass"
    assert "the miss policy is pass" in told.why
    assert said in "\n".join(told.lines()), list(told.lines())


def test_the_table_is_named_by_option_file_and_line(tmp_path):
    path = tmp_path / "site.rules"
    path.write_text("# site\n\nweb: proto tcp dport 80 -> out eth1\nany -> drop\n")
    explainer = Explainer(join_rules(["proto tcp dport 81 -> drop"], path))
    told = explainer.explain(WEB)
    assert [refusal.rule.where for refusal in told.refusals] == ["--rule line 1"]
    assert (told.rule.rank, told.rule.name, told.rule.where) == (1, "web", f"{path} line 3")
    with pytest.raises(ConfigError, match=r"site.rules line 4: same match .* as --rule line 1"):
        join_rules(["any -> pass"], path)


def test_of_many_refusals_the_first_are_told_and_the_rest_counted():
    text = "".join(f"proto tcp dport {port} -> drop\n" for port in range(100, 130))
    told = explain(f"{text}any -> out eth1", WEB)
    assert [refusal.rule.rank for refusal in told.refusals] == list(range(MAX_REFUSALS))
    assert told.more == 20
    assert any(line.endswith("and 20 more") for line in told.lines())


def test_what_is_rewritten_is_shown_from_the_header_to_the_last_byte_that_changed():
    frame = Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2", ttl=2) / UDP() / b"same"
    told = explain(f"any -> out e set_dst_mac {C} push_vlan 7 dec_ttl", frame)
    was, now = list(told.lines())[-2:]
    assert was.startswith("was    02 00 00 00 00 0b 02 00 00 00 00 0a 08 00 45 00")
    assert now.startswith("is     02 00 00 00 00 0c 02 00 00 00 00 0a 81 00 00 07 08 00 45 00")
    for line, whole in ((was, told.before), (now, told.after)):
        *head, _, rest, _ = line.split()[1:]
        assert len(head) + int(rest) == len(whole)
        assert int(rest) >= len(UDP() / b"same")
    assert len(told.after) == len(told.before) + 4


def test_a_spent_ttl_and_a_short_frame_are_explained():
    spent = explain("any -> out e dec_ttl", Ether() / IP(ttl=1))
    assert (spent.verdict, spent.out_link, spent.rule.rank) == ("pass", None, 0)
    assert "hop limit is spent" in spent.why
    for length in range(14):
        told = explain("any -> drop", WEB[:length], miss="drop")
        assert (told.rule, told.refusals, told.more) == (None, (), 0)
        assert f"header ({length} bytes)" in told.why


def test_where_frames_come_from_is_the_first_in_unless_told():
    rules = "any -> drop\nin b -> out a\nin c -> out a"
    assert explain(rules, WEB).seen["in"] == "b"
    assert explain(rules, WEB, in_link="a").verdict == "drop"
    assert "in" not in explain("any -> out b", WEB).seen
    assert explain("any -> out b", WEB, in_link="x").seen["in"] == "x"  # no rule can tell
    with pytest.raises(ConfigError, match="in must be one of b, a, c, got 'x'"):
        explain(rules, WEB, in_link="x")
    with pytest.raises(ConfigError, match="miss must be one of pass, drop, user, got 'out'"):
        explain(rules, WEB, miss="out")


# Captures


FRAMES = [bytes(Ether() / ARP()), WEB, WEB[:60].ljust(1514, b"\xa5")]


def classic(path, order, nano):
    with PcapWriter(str(path), linktype=1, endianness=order, nano=nano) as writer:
        writer.write_header(None)
        for frame in FRAMES:
            writer.write_packet(frame, sec=1, usec=2)


def read(path):
    """Return the frames of a capture, and the error it ends with or ""."""
    frames = []
    try:
        frames.extend(frame for frame, _ in read_capture(str(path)))
    except ConfigError as error:
        return frames, str(error)
    return frames, ""


def block(order, kind, body):
    length = 12 + len(body) + -len(body) % 4
    padded = body.ljust(length - 12, b"\0")
    return struct.pack(f"{order}II", kind, length) + padded + struct.pack(f"{order}I", length)


def next_generation(order, link_type=1):
    """A section, a block to step over, two interfaces, and frames in two kinds of blocks."""
    section = struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1) + b"\1\0\2\0hi\0\0\0\0\0\0"
    found = block(order, 0x0A0D0D0A, section) + block(order, 4, bytes(9))
    for kept in (1514, 0):
        found += block(order, 1, struct.pack(f"{order}HxxI", link_type, kept))
    for index, frame in enumerate(FRAMES[:2]):
        head = struct.pack(f"{order}I8xII", index, len(frame), len(frame))
        found += block(order, 6, head + frame)
    return found + block(order, 3, struct.pack(f"{order}I", 2000) + FRAMES[2])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nano", [False, True])
def test_pcap_is_read_in_both_byte_orders_and_both_units_of_time(tmp_path, order, nano):
    classic(tmp_path / "f", order, nano)
    assert list(read_capture(str(tmp_path / "f"))) == [(each, len(each)) for each in FRAMES]


@pytest.mark.parametrize("orders", ["<", ">", "<><"])
def test_pcapng_is_read_section_by_section(tmp_path, orders):
    path = tmp_path / "f"
    path.write_bytes(b"".join(map(next_generation, orders)))
    once = [(each, len(each)) for each in FRAMES[:2]] + [(FRAMES[2], 2000)]
    assert list(read_capture(str(path))) == once * len(orders)


def test_pcapng_of_another_writer_is_read(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with PcapNgWriter(str(tmp_path / "f")) as writer:
            for frame in FRAMES:
                writer.write(Ether(frame))
    assert [frame for frame, _ in read_capture(str(tmp_path / "f"))] == FRAMES


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_a_capture_cut_anywhere_gives_the_frames_before_and_an_error(tmp_path, kind):
    path = tmp_path / "f"
    if kind == "pcap":
        classic(path, "<", False)
    else:
        path.write_bytes(next_generation("<"))
    whole, ends = path.read_bytes(), set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        frames, said = read(path)
        assert frames == FRAMES[: len(frames)]
        assert not said or str(path) in said
        if not said:
            ends.add(length)
    assert len(ends) in (3, 6)  # between blocks, before the last


@given(st.sampled_from(["pcap", "pcapng"]), st.data())
@settings(deadline=None)
def test_a_damaged_capture_is_frames_or_a_config_error(tmp_path_factory, kind, data):
    path = tmp_path_factory.getbasetemp() / "damaged"
    if kind == "pcap":
        classic(path, "<", False)
    else:
        path.write_bytes(next_generation("<"))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 300))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    frames, said = read(path)
    for frame in frames:
        explain("any -> drop", frame)
    assert "\n" not in said


def test_only_ethernet_is_read_and_the_checksums_length_is_no_link_type(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(next_generation("<", link_type=113))
    with pytest.raises(ConfigError, match="link type 113; rules are about Ethernet"):
        list(read_capture(str(path)))
    head = struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 0x24000001)
    path.write_bytes(head)
    assert list(read_capture(str(path))) == []
    path.write_bytes(head + struct.pack("<IIII", 0, 0, 1 << 31, 60))
    with pytest.raises(ConfigError, match="damaged: a block of 2147483648 bytes"):
        list(read_capture(str(path)))


def test_hex_may_have_spaces_and_colons():
    for text in (WEB.hex(), WEB.hex(":").upper(), WEB.hex(" ", 2), f" {WEB.hex()}\n"):
        assert list(read_frames(text)) == [(WEB, len(WEB))]


# The verb


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.rules"
    path.write_text("web: proto tcp dport 80 -> out eth1\nproto tcp dport 1-3 -> drop\n")
    return path


def test_the_verb_tells_one_frame_in_hex(site):
    done = run("rules", "test", WEB.hex(":"), "--rules", site)
    assert done.returncode == 0, done.stderr
    assert "takes  rank 0," in done.stdout
    assert "site.rules line 1: web: proto tcp dport 80 -> out eth1\n" in done.stdout
    assert done.stdout.endswith("then   out eth1\n")


def test_the_verb_tells_every_frame_of_a_capture_as_json(site, tmp_path):
    classic(tmp_path / "f.pcap", "<", False)
    done = run("rules", "test", tmp_path / "f.pcap", "--rules", site, "--miss", "drop", "--json")
    *frames, summary = map(json.loads, done.stdout.splitlines())
    assert [bytes.fromhex(each["before"]) for each in frames] == FRAMES
    assert [each["verdict"] for each in frames] == ["drop", "out", "out"]
    assert [each["number"] for each in frames] == [1, 2, 3]
    assert frames[0]["refusals"][0]["field"] == "proto"
    assert summary == {"event": "summary", "frames": 3, "verdicts": {"drop": 1, "out": 2}}


def test_the_frames_before_the_cut_are_told_and_the_cut_is_an_error(site, tmp_path):
    path = tmp_path / "f.pcap"
    classic(path, ">", True)
    path.write_bytes(path.read_bytes()[:-1])
    done = run("rules", "test", path, "--rules", site)
    assert_one_line(done, 2, "f.pcap is cut: its last block has 1513 of 1514 bytes")
    assert done.stdout.count("frame ") == 2


def test_check_counts_rules_masks_and_entries(site):
    assert run("rules", "check", site).stdout == "2 rules, 2 masks, 3 entries\n"
    done = run("rules", "check", site, "--json")
    assert json.loads(done.stdout) == {"event": "summary", "rules": 2, "masks": 2, "entries": 3}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "test|check"),
        (["test", "00"], "--rules FILE or --rule RULE"),
        (["test", "", "--rule", "any -> drop"], "got 0 digits"),
        (["test", "0:00", "--rule", "any -> drop"], "got 3 digits"),
        (["test", "0g", "--rule", "any -> drop"], "capture file 0g: No such file"),
        (["test", "/", "--rule", "any -> drop"], "capture file /: Is a directory"),
        (["test", "/dev/null", "--rule", "any -> drop"], "neither pcap nor pcapng"),
        (["test", "/dev/zero", "--rule", "any -> drop"], "neither pcap nor pcapng"),
        (["test", "00", "--rule", "in a -> drop", "--in", "b"], "in must be one of a, got 'b'"),
        (["test", "00", "--rule", "any -> drop", "--miss", "out"], "miss must be one of pass"),
        (["test", "00", "--rule", "any -> fly"], "--rule line 1: action must be"),
        (["test", "00", "--rules", "/nosuch"], "rules file /nosuch: No such file"),
        (["check", "/nosuch"], "rules file /nosuch: No such file"),
        (["check", "/dev/null"], "/dev/null holds no rule"),
    ],
)
def test_bad_input_is_named_in_one_line(words, said):
    assert_one_line(run("rules", *words), 2, said)
