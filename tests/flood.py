"""A flood of new flows beside a steady one, as fast as Linux takes it; and what it costs."""

import ctypes
import os
import struct
from pathlib import Path

import numpy as np

from l2fwd._bpf import map_items
from l2fwd.records import FLOW
from tests.hostile_frames import UDP, ethernet, ipv4, ports
from tests.on_the_wire import End
from tests.prologue import bpf

MAP_GET_FD_BY_ID = 14
LRU_HASH = "9"
HASH_BYTES = 8  # of a flow's key
AT_ONCE = 200  # frames; a veth queue holds 256


class Flood:
    """Frames from ever new addresses, and one of a steady flow behind each ``AT_ONCE`` of them."""

    def __init__(self, bed):
        self._end = End(bed.gen, "g0")
        self._sink = End(bed.sink, "s0")
        udp = ethernet(0x0800, ipv4(UDP, ports(1000, 53)))
        self._frames = np.tile(np.frombuffer(udp.ljust(60, b"\0"), np.uint8), (AT_ONCE + 1, 1))
        self._sources = self._frames[:-1, 26:30].view(">u4")[:, 0]
        self._frames[-1, 12:14] = (0x88, 0xB5)
        self._number = self._frames[-1, 14:18].view(">u4")
        self._next = 10 << 24
        self.sent = 0
        # struct iovec, and struct mmsghdr with nothing but that in it
        iovecs = np.zeros((AT_ONCE + 1, 2), np.uint64)
        iovecs[:, 0] = self._frames.ctypes.data + np.arange(AT_ONCE + 1) * self._frames.shape[1]
        iovecs[:, 1] = self._frames.shape[1]
        self._messages = np.zeros((AT_ONCE + 1, 8), np.uint64)
        self._messages[:, 2] = iovecs.ctypes.data + np.arange(AT_ONCE + 1) * 16
        self._messages[:, 3] = 1
        self._iovecs = iovecs
        self._sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg

    def step(self):
        """Send one round and wait for the steady frame at its end: no queue runs over."""
        self._sources[:] = np.arange(self._next, self._next + AT_ONCE)
        self._next += AT_ONCE
        self.sent += 1
        self._number[0] = self.sent
        messages = ctypes.c_void_p(self._messages.ctypes.data)
        descriptor = self._end.socket.fileno()
        assert self._sendmmsg(descriptor, messages, AT_ONCE + 1, 0) == AT_ONCE + 1
        assert self._sink.receive(1) == [self._frames[-1].tobytes()], self.sent

    def close(self):
        self._end.close()
        self._sink.close()


def flow_table(pid):
    """Return how many entries the flow table of a process has, and may have."""
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        fields = dict(line.split(":\t") for line in entry.read_text().splitlines() if ":\t" in line)
        if fields.get("map_type") == LRU_HASH:
            descriptor = bpf(MAP_GET_FD_BY_ID, struct.pack("=I", int(fields["map_id"])))
            hashes, _ = map_items(descriptor, HASH_BYTES, FLOW.itemsize)
            os.close(descriptor)
            return len(hashes) // HASH_BYTES, int(fields["max_entries"])
    raise AssertionError("no flow table")
