"""A data path between the links of a bed, and every place where its frames may come out."""

import socket
import struct
import time
from collections import Counter, defaultdict, deque
from contextlib import ExitStack

from l2fwd import ethtool, link
from l2fwd._classify import Classifier
from l2fwd.config import AttachMode, ForwardConfig
from l2fwd.datapath.choose import make_path
from l2fwd.engine import summarize
from l2fwd.flow_table import flow_mask
from l2fwd.rule_maps import MAX_ENTRIES
from l2fwd.rule_table import compile_rules
from l2fwd.rules import Action, parse_rules
from tests import oracle

DATA_PATHS = ("afxdp", "redirect", "hybrid")
MODES = ("native", "skb")
HOST = "host"
FRAMES_AT_ONCE = 64  # a veth queue holds 256
SECONDS = 3

ETH_P_ALL = 0x0003
SO_RCVBUFFORCE = 33
SOL_PACKET = 263
PACKET_AUXDATA = 8
AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
VLAN_IS_VALID = 1 << 4  # TP_STATUS_VLAN_VALID


class End:
    """A packet socket on a link: all it receives, as it came."""

    def __init__(self, netns, ifname):
        with link.in_netns(netns):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
            self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            self.socket.bind((ifname, ETH_P_ALL))

    def close(self):
        self.socket.close()

    def receive(self, count, seconds=SECONDS):
        """Return ``count`` frames, or those that came in time."""
        frames = []
        deadline = time.monotonic() + seconds
        while len(frames) < count:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data, extra, _, (_, _, kind, *_) = self.socket.recvmsg(65536, 256)
            except TimeoutError:
                break
            if kind != socket.PACKET_OUTGOING:
                frames.append(with_tag(data, extra))
        return frames


def with_tag(data, extra):
    """Put the outermost tag back, which the stack takes out before it shows a packet."""
    for level, kind, value in extra:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, *_, tci, tpid = AUXDATA.unpack(value[: AUXDATA.size])
            if status & VLAN_IS_VALID:
                return data[:12] + struct.pack(">HH", tpid, tci) + data[12:]
    return data


def is_shown(frame):
    """Tell whether packet sockets see a frame: not if it ends at its tag (skb_vlan_untag)."""
    return len(frame) >= 20 or frame[12:14] not in (b"\x81\x00", b"\x88\xa8")


class Crossing:
    """A data path in this process, and the ends around it; a context manager.

    Parameters
    ----------
    bed : Bed
    data_path, mode : str
    rules : str
    ends : dict of str to (netns, ifname), optional
        What lies behind each further link of the rules.
    decide : callable, optional
        ``decide(frame)`` returns the Action that ``policy`` has for it.
    settings : of ForwardConfig
    """

    def __init__(self, bed, data_path, mode, rules, *, ends=None, decide=None, **settings):
        self.bed = bed
        self.table = parse_rules(rules)
        self.config = ForwardConfig(
            in_link="f0",
            out_link="f1",
            data_path=data_path,
            mode=AttachMode(mode),
            rules=self.table,
            **settings,
        )
        self.events = []
        links = dict.fromkeys(self.config.links, 1)
        compiled = compile_rules(self.table.ranked(), links, MAX_ENTRIES)
        self._flow_mask = int.from_bytes(flow_mask(compiled))
        self._reader = Classifier((), {})
        self.decide = decide
        self.wrap = bytes  # what is sent of each frame
        self._places = {"f0": (bed.gen, "g0"), "f1": (bed.sink, "s0"), HOST: (bed.fwd, "f0")}
        self._places |= ends or {}
        self.tally = Counter()  # frames by place
        self._hits = Counter()  # and by rule
        self._hit_bytes = Counter()
        self._undo = ExitStack()

    def __enter__(self):
        with ExitStack() as undo, link.in_netns(self.bed.fwd):
            self.path = make_path(self.config, self.events.append)
            undo.callback(self.path.stop)
            self._first = self.path.sample()
            self.path.start()
            self.ends = {}
            for place, (netns, ifname) in self._places.items():
                self.ends[place] = End(netns, ifname)
                undo.callback(self.ends[place].close)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception):
        self._undo.close()

    def expected(self, frame, source="f0"):
        """Return the rule, where the oracle wants a frame, None if dropped, and as what."""
        rule = oracle.classify(self.table, source, frame)
        action = rule.action if rule else Action(kind=self.config.miss)
        if action.kind == "user":
            action = self.decide(frame)
        verdict, became = oracle.apply(action, frame)
        return rule, {"out": action.out_link, "pass": HOST}.get(verdict), became

    def _flow_of(self, frame, place):
        """Return what no packet may overtake another one of: a flow, or all there are.

        On hybrid, and to the host, some go through user space and some do not.
        """
        if self.config.data_path != "hybrid" and place != HOST:
            return None
        return int.from_bytes(self._reader.key(frame, 1)) & self._flow_mask

    def cross(self, frames, source="f0"):
        """Send frames to a link; each must come out where and as the oracle says, in order."""
        for first in range(0, len(frames), FRAMES_AT_ONCE):
            self._cross(frames[first : first + FRAMES_AT_ONCE], source)

    def _cross(self, frames, source):
        wanted = defaultdict(list)
        for frame in frames:
            rule, place, became = self.expected(frame, source)
            self.tally[place] += 1
            self._hits[rule] += 1
            self._hit_bytes[rule] += len(frame)
            if is_shown(became):
                wanted[place].append((self._flow_of(frame, place), became, frame))
        for frame in frames:
            self.ends[source].socket.send(self.wrap(frame))
        for place in self.ends:
            received = self.ends[place].receive(len(wanted[place]))
            check_order(place, wanted[place], received)

    def settle(self):
        """Wait until the data path has done with all that was sent."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            counts = count_up(summarize(self._first, self.path.sample()))
            if sum(counts.values()) >= self.tally.total():
                return
            time.sleep(0.01)

    def stop(self):
        """Stop; nothing may come any more.  Return the summary."""
        self.settle()
        for place, end in self.ends.items():
            assert end.receive(1, 0.05) == [], place
        self.hits = self.path.hits()
        self.path.stop()
        summary = summarize(self._first, self.path.sample())
        assert summary["unaccounted"] == summary["in_flight"] == 0
        return summary

    def check_books(self, summary):
        """Hold what the path has counted against what was sent, to the packet."""
        gone, host = self.tally[None], self.tally[HOST]
        out = self.tally.total() - gone - host
        assert count_up(summary) == {"forwarded": out, "dropped": gone, "host": host}, summary
        wanted = {rule: (self._hits[rule], self._hit_bytes[rule]) for rule in self.table}
        assert {str(rule): each for rule, each in self.hits.items()} == {
            str(rule): each for rule, each in wanted.items()
        }


def count_up(summary):
    """Add up what a summary says became of all packets."""
    ports = summary["ports"]
    host = sum(port.get("passed_packets", 0) + port.get("host_packets", 0) for port in ports)
    dropped = sum(summary["drops"].values())
    return {"forwarded": summary["forwarded"], "dropped": dropped, "host": host}


def check_order(place, wanted, received):
    """Hold frames against what was wanted; none may have overtaken another one of its flow."""
    missing = Counter(became for _, became, _ in wanted) - Counter(received)
    if missing:
        lost = [(frame.hex(), became.hex()) for _, became, frame in wanted if became in missing]
        extra = [frame.hex() for frame in received if frame not in {each[1] for each in wanted}]
        raise AssertionError(f"{place}: {len(lost)} missing, {lost[:3]}; came instead: {extra[:3]}")
    positions = defaultdict(deque)
    for position, frame in enumerate(received):
        positions[frame].append(position)
    last = {}
    for flow, became, _ in wanted:
        position = positions[became].popleft()
        assert position > last.get(flow, -1), f"{place}: {became.hex()} was overtaken"
        last[flow] = position


def add_link(bed, ifname, outer):
    """Join another link of the bed's middle to ``outer``, a (netns, ifname), as Bed does."""
    ends = ((bed.fwd, ifname), outer)
    link.create_veth(*ends, queues=bed.queues)
    for netns, name in ends:
        with link.in_netns(netns):
            link.disable_ipv6(name)
            link.set_promiscuous(name, True)
            link.set_up(name)
    for is_on in (False, True):  # NAPI, without which native redirect delivers nothing
        for netns, name in ends:
            with link.in_netns(netns):
                ethtool.set_features(name, {"generic-receive-offload": is_on})
