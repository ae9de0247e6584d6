"""Answer ARP requests and IPv4 pings for one address, in place: the frame received is sent.

python examples/ping_responder.py LINK ADDRESS
"""

import ipaddress
import sys

import numpy as np

from l2fwd import XdpSocket
from l2fwd.link import find_link

ARP_REQUEST = bytes.fromhex("08060001080006040001")
ICMP_ECHO, ICMP_REPLY = 8, 0


def answer(packet, mac, address):
    """Turn a request into its answer; False if it is none.  packet: uint8, shape (n,)."""
    data = packet.tobytes()
    if data[12:22] == ARP_REQUEST and data[38:42] == address:
        packet[21] = 2  # a reply; sender and target change places
        packet[32:42] = packet[22:32].copy()
        packet[22:32] = np.frombuffer(mac + address, np.uint8)
    elif data[12:15] == b"\x08\0\x45" and data[23] == 1 and data[30:35] == address + b"\x08":
        packet[26:30], packet[30:34] = packet[30:34].copy(), packet[26:30].copy()
        packet[34] = ICMP_REPLY
        # RFC 1624: the word with the type is 0x0800 less, so the checksum is 0x0800 more.
        total = int.from_bytes(data[36:38]) + (ICMP_ECHO << 8)
        total = (total & 0xFFFF) + (total >> 16)
        packet[36], packet[37] = total >> 8, total & 0xFF
    else:
        return False
    packet[:6] = packet[6:12].copy()
    packet[6:12] = np.frombuffer(mac, np.uint8)
    return True


def main(link, address):
    mac = bytes.fromhex(find_link(link).address.replace(":", ""))
    target = ipaddress.IPv4Address(address).packed
    with XdpSocket(link) as socket:
        print(f"{link}: answering for {address}", flush=True)
        while True:
            with socket.read_batch() as batch:
                socket.write_batch([p.tobytes() for p in batch if answer(p, mac, target)])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        print("done")
