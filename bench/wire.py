"""What a wire carries.

Sizes are those in memory, as sockets and programs see a frame: with its Ethernet header, without
the four bytes of FCS that the NIC appends.  RFC 2544 and data sheets count the FCS: their 64
bytes are 60 here.
"""

from typing import Final

FCS_BYTES: Final = 4
GAP_BYTES: Final = 20  # preamble and start of frame: 8; least gap between two frames: 12
LEAST_BYTES: Final = 60  # in memory; a NIC pads what is shorter
SPEEDS: Final = {"10 GbE": 10e9, "25 GbE": 25e9, "40 GbE": 40e9}  # bits a second


def line_rate(bits_per_second: float, frame_bytes: int) -> float:
    """Return the most frames a second that a wire carries, ``frame_bytes`` each without FCS.

    >>> round(line_rate(10e9, 60)), round(line_rate(10e9, 1514))
    (14880952, 812744)
    """
    on_the_wire = max(frame_bytes, LEAST_BYTES) + FCS_BYTES + GAP_BYTES
    return bits_per_second / (8 * on_the_wire)
