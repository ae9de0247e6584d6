"""Time from a frame to what it shows to the rules: our parser against plain C.

Question: does ``parse_packet``, which all frames pass where there are rules, cost no more than C?
Method:   4096 frames of 128 bytes, made at random from a fixed seed: no, one or two VLAN tags; IPv4
          with and without options, IPv6 with extension headers, neither; TCP, UDP, SCTP, ICMP;
          fragments; and some where the bytes after the tags are noise.  They come in another order
          every time, so that no branch predictor knows them by heart.  Both parse them one after
          the other into keys of 64 bytes, and all keys must be the same.
"""

import ctypes
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.case import Case
from bench.reference import compiled, declare
from l2fwd._classify import Classifier
from l2fwd.records import KEY

FRAME_BYTES: Final = 128
FRAME_COUNT: Final = 4096
GOAL: Final = 1.0
_SEED: Final = 7
_IFINDEX: Final = 3
_PROTOCOLS: Final = (1, 6, 6, 17, 17, 58, 132)
_TAGS: Final = (b"", b"", b"\x81\x00", b"\x88\xa8\x00\x07\x81\x00")  # all but the last one's VLAN
_HOP_BY_HOP, _FRAGMENT, _DESTINATION = 0, 44, 60

Bytes = NDArray[np.uint8]
Parse = Callable[[Bytes, Bytes], Any]  # from frames to keys


def random_frame(rng: random.Random) -> bytes:
    """Return one frame of ``FRAME_BYTES``."""
    tags = rng.choice(_TAGS)
    tags += rng.randbytes(2) if tags else b""
    ethertype, rest = rng.choice((_ipv4, _ipv4, _ipv6, _noise))(rng)
    frame = b"\x02" + rng.randbytes(5) + b"\x02" + rng.randbytes(5) + tags + ethertype + rest
    return (frame + rng.randbytes(FRAME_BYTES))[:FRAME_BYTES]


def _ipv4(rng: random.Random) -> tuple[bytes, bytes]:
    options = rng.choice((0, 0, 0, 1, 3))  # words
    fragment = rng.choice((0, 0, 0, 0x2000, 0x2003)).to_bytes(2, "big")
    head = bytes([0x45 + options, 0, 0, 100]) + rng.randbytes(2) + fragment
    head += bytes([64, rng.choice(_PROTOCOLS)]) + rng.randbytes(10)
    return b"\x08\x00", head + bytes(4 * options)


def _ipv6(rng: random.Random) -> tuple[bytes, bytes]:
    chain = [
        *rng.choice(((), (), (_HOP_BY_HOP,), (_DESTINATION, _FRAGMENT))),
        rng.choice(_PROTOCOLS),
    ]
    head = b"\x60\0\0\0\0\x64" + bytes([chain[0], 64]) + rng.randbytes(32)
    return b"\x86\xdd", head + b"".join(bytes([following]) + bytes(7) for following in chain[1:])


def _noise(rng: random.Random) -> tuple[bytes, bytes]:
    return rng.choice((b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x88\xb5")), b""


class Frames:
    """Frames, and one who parses them."""

    def __init__(self, parse: Parse) -> None:
        rng = random.Random(_SEED)
        made = bytearray().join(random_frame(rng) for _ in range(FRAME_COUNT))
        self._frames = np.frombuffer(made, np.uint8).reshape(FRAME_COUNT, FRAME_BYTES)
        self._rng = np.random.default_rng(_SEED)
        self._parse = parse
        self.keys = np.zeros((FRAME_COUNT, KEY.itemsize), np.uint8)

    def run(self) -> tuple[float, int]:
        """Parse all; return the ns it took, and how many frames they were."""
        self._rng.shuffle(self._frames)
        began = time.thread_time_ns()
        self._parse(self._frames, self.keys)
        return time.thread_time_ns() - began, FRAME_COUNT


@contextmanager
def cases(level: str) -> Iterator[list[Case]]:
    """One case, at any level."""
    bare = Classifier([], {})
    with compiled("hash_reference") as library:
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        declare(library, "reference_parse", None, pointer, *[number] * 3, pointer)

        def ours(frames: Bytes, keys: Bytes) -> None:
            bare.parse_frames(frames, _IFINDEX, keys)

        def reference(frames: Bytes, keys: Bytes) -> None:
            library.reference_parse(
                frames.ctypes.data, FRAME_BYTES, FRAME_COUNT, _IFINDEX, keys.ctypes.data
            )

        _check(ours, reference)
        yield [
            Case(
                name="header parse",
                contenders={"ours": partial(_make, ours), "C": partial(_make, reference)},
                reference="C",
                goals={"ours": GOAL},
                values={"bytes": FRAME_BYTES},
            )
        ]


def _make(parse: Parse) -> Callable[[], tuple[float, int]]:
    return Frames(parse).run


def _check(ours: Parse, reference: Parse) -> None:
    both = [Frames(parse) for parse in (ours, reference)]
    for frames in both:
        frames.run()
    assert np.array_equal(both[0].keys, both[1].keys), "other keys: the result means nothing"
