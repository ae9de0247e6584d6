"""What a policy in Python is asked about, and how it answers: numpy arrays over a burst."""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from l2fwd.abi import CHANGES, VERDICTS
from l2fwd.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Mac: TypeAlias = bytes | NDArray[np.uint8]


class PolicyBatch:
    """Packets that wait for an answer.

    Attributes
    ----------
    packets : structured array, shape (n,)
        ``records.PACKET``: ``addr`` (byte offset in the UMEM), ``length`` (bytes there), ``more``
        (bytes in further frames, not shown) and ``key``, the parsed header fields
        (``records.KEY``).  A copy.
    frames : uint8, shape (frame_count, frame_size)
        All packet memory, no copy.  Byte ``i`` of each packet is
        ``frames[batch.row, batch.column + i]``; what is written there is sent.  The packets are
        only there inside the call that got the batch.
    row, column : int64, shape (n,)
        Where in ``frames`` each packet begins.
    links : mapping of str to int
        The ifindex of each link that can be sent to; IN and OUT are the first two.
    """

    def __init__(
        self, packets: "NDArray[Any]", frames: "NDArray[np.uint8]", links: Mapping[str, int]
    ) -> None:
        self.packets = packets
        self.frames = frames
        self.links = links

    def __len__(self) -> int:
        return len(self.packets)

    @cached_property
    def row(self) -> "NDArray[np.int64]":
        row: NDArray[np.int64] = self.packets["addr"].astype("i8") // self.frames.shape[1]
        return row

    @cached_property
    def column(self) -> "NDArray[np.int64]":
        column: NDArray[np.int64] = self.packets["addr"].astype("i8") % self.frames.shape[1]
        return column

    def bytes_of(self, index: int) -> "NDArray[np.uint8]":
        """Return a view of one packet, of its first frame: uint8 of shape (length,)."""
        start = int(self.column[index])
        view: NDArray[np.uint8] = self.frames[
            self.row[index], start : start + int(self.packets["length"][index])
        ]
        return view

    def actions(self) -> "NDArray[Any]":
        """Return new answers, ``records.ACTION`` of shape (n,); each says ``pass`` at first."""
        import numpy as np

        from l2fwd.records import ACTION

        return np.zeros(len(self), ACTION)

    def out(
        self,
        actions: "NDArray[Any]",
        where: Any = slice(None),
        link: str | None = None,
        *,
        set_dst_mac: "Mac | None" = None,
        set_src_mac: "Mac | None" = None,
        swap_mac: bool = False,
        push_vlan: int | None = None,
        pop_vlan: bool = False,
        dec_ttl: bool = False,
    ) -> None:
        """Send the packets chosen by ``where`` (mask, indices or slice) out of ``link``.

        The changes are those of a rule's ``out``, made in its order.

        Parameters
        ----------
        link : str, optional
            The other one of IN and OUT where not given.
        set_dst_mac, set_src_mac : bytes or uint8 of shape (6,) or (chosen, 6), optional
        push_vlan : int, optional
            VLAN id, 1 to 4094.

        Raises
        ------
        ConfigError
            If the link is not one of the job's, or a MAC or VLAN id is none.
        """
        if link is not None and link not in self.links:
            raise ConfigError(f"out must be one of {', '.join(self.links)}, got {link!r}")
        if push_vlan is not None and not 1 <= push_vlan <= 4094:
            raise ConfigError(f"push_vlan must be in [1, 4094], got {push_vlan}")
        asked = {"swap_mac": swap_mac, "pop_vlan": pop_vlan, "dec_ttl": dec_ttl}
        asked["push_vlan"] = push_vlan is not None
        for field, mac in (("dst_mac", set_dst_mac), ("src_mac", set_src_mac)):
            if mac is not None:
                asked["set_" + field] = True
                actions[field][where] = _mac_rows(mac, "set_" + field)
        actions["verdict"][where] = VERDICTS["out"]
        actions["out_ifindex"][where] = 0 if link is None else self.links[link]
        actions["changes"][where] = sum(CHANGES[name] for name in asked if asked[name])
        actions["vlan"][where] = push_vlan or 0

    def drop(self, actions: "NDArray[Any]", where: Any = slice(None)) -> None:
        """Drop the packets chosen by ``where``."""
        actions["verdict"][where] = VERDICTS["drop"]
        actions["changes"][where] = 0

    def once(self, actions: "NDArray[Any]", where: Any = slice(None)) -> None:
        """Answer for these packets only: the next ones of their flows are asked about again."""
        from l2fwd.records import NOT_LEARNED

        actions["flags"][where] |= NOT_LEARNED


def _mac_rows(mac: "Mac", name: str) -> "NDArray[np.uint8]":
    import numpy as np

    rows: NDArray[np.uint8] = np.frombuffer(mac, np.uint8) if isinstance(mac, bytes) else mac
    if rows.dtype != np.uint8 or rows.shape[-1:] != (6,):
        raise ConfigError(f"{name} must be 6 bytes, or uint8 of shape (n, 6)")
    return rows
