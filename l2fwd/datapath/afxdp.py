"""Data path ``afxdp``: NIC, AF_XDP socket, worker, AF_XDP socket, NIC."""

from typing import Any

from l2fwd.config import ForwardConfig
from l2fwd.datapath.queue_worker import QueueWorker
from l2fwd.datapath.socket_path import SocketPath
from l2fwd.xsk import Umem


class AfxdpPath(SocketPath[ForwardConfig]):
    """Forwards all packets between the two links of ``config`` through AF_XDP sockets.

    Queue *i* of both has one UMEM and one worker, so that no packet is copied.
    """

    def _worker_options(self, of: QueueWorker, umem: Umem) -> dict[str, Any]:
        return {
            "both_ways": not self.config.one_way,
            "dst_mac": self.config.rewrite.dst_mac,
            "swap_mac": self.config.rewrite.swap_mac,
        }
