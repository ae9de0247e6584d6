"""Policies: your own code decides what becomes of a packet.

A packet gets to a policy by a rule ``... -> user`` or by the miss policy ``user``.  The answer is
learned by the data path ``hybrid``, so that the later packets of the flow stay in the kernel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from l2fwd.abi import CHANGES, VERDICTS
from l2fwd.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Field of a policy -> bytes of the key (rule_keys.KEY) that tell one flow from another.
_FIELDS: Final = {
    "in": (0, 4),
    "dst_mac": (4, 10),
    "src_mac": (10, 16),
    "ethertype": (16, 18),
    "vlan": (18, 22),
    "proto": (22, 24),
    "sport": (24, 26),
    "dport": (26, 28),
    "src": (32, 48),
    "dst": (48, 64),
}
_FLAGS: Final = 28


class Batch:
    """Packets that wait for an answer.  Only valid inside the call that got it.

    Attributes
    ----------
    packets : structured array, shape (n,)
        ``records.PACKET``: ``addr`` (byte offset in the UMEM), ``length`` (bytes) and ``key``, the
        parsed header fields (``records.KEY``).
    frames : uint8, shape (frame_count, frame_size)
        All packet memory, no copy.  Byte ``i`` of each packet is
        ``frames[batch.row, batch.column + i]``; what is written there is sent.
    row, column : int64, shape (n,)
        Where in ``frames`` each packet begins.
    links : mapping of str to int
        The ifindex of each link that can be sent to.
    """

    def __init__(
        self, packets: "NDArray[Any]", frames: "NDArray[np.uint8]", links: Mapping[str, int]
    ) -> None:
        self.packets = packets
        self.frames = frames
        self.links = links
        addrs = packets["addr"].astype("i8")
        self.row, self.column = divmod(addrs, frames.shape[1])

    def __len__(self) -> int:
        return len(self.packets)

    def bytes_of(self, index: int) -> "NDArray[np.uint8]":
        """Return a view of one packet, uint8 of shape (length,)."""
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
        where: Any,
        link: str,
        *,
        set_dst_mac: "bytes | NDArray[np.uint8] | None" = None,
        set_src_mac: "bytes | NDArray[np.uint8] | None" = None,
        swap_mac: bool = False,
    ) -> None:
        """Send the packets chosen by ``where`` (mask, indices or slice) out of ``link``.

        Parameters
        ----------
        set_dst_mac, set_src_mac : bytes or uint8 of shape (6,) or (chosen, 6), optional

        Raises
        ------
        ConfigError
            If the link is not one of the job's.
        """
        import numpy as np

        if link not in self.links:
            raise ConfigError(f"out must be one of {', '.join(self.links)}, got {link!r}")
        changes = CHANGES["swap_mac"] if swap_mac else 0
        for field, mac in (("dst_mac", set_dst_mac), ("src_mac", set_src_mac)):
            if mac is not None:
                changes |= CHANGES["set_" + field]
                rows = np.frombuffer(mac, np.uint8) if isinstance(mac, bytes) else mac
                actions[field][where] = rows
        actions["verdict"][where] = VERDICTS["out"]
        actions["out_ifindex"][where] = self.links[link]
        actions["changes"][where] = changes

    def drop(self, actions: "NDArray[Any]", where: Any) -> None:
        """Drop the packets chosen by ``where``."""
        actions["verdict"][where] = VERDICTS["drop"]

    def once(self, actions: "NDArray[Any]", where: Any = slice(None)) -> None:
        """Answer for these packets only: the next ones of their flows are asked about again."""
        from l2fwd.records import NOT_LEARNED

        actions["flags"][where] |= NOT_LEARNED


Decide = Callable[[Batch], "NDArray[Any]"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Your code, in the worker's thread.

    Parameters
    ----------
    decide : callable or None
        ``decide(batch)`` returns one action for each packet of a ``Batch``, as ``batch.actions()``
        does.  What it raises is logged, and the batch dropped and counted.
    fields : sequence of str
        What tells one flow from another: ``in src_mac dst_mac ethertype vlan proto src dst sport
        dport``.  A packet that differs in no field named here is not asked about again while its
        flow is learned.  All of them by default; fewer make fewer flows.
    for_burst, for_packet : int
        Address of a C function that decides without the GIL, in place of ``decide``; see
        ``Policy.from_function``.

    Raises
    ------
    ConfigError
        If not exactly one of the three is given, or a field is unknown.
    """

    decide: Decide | None = None
    fields: Sequence[str] = tuple(_FIELDS)
    for_burst: int = 0
    for_packet: int = 0
    owner: Any = None  # keeps a C function alive

    def __post_init__(self) -> None:
        if sum(map(bool, (self.decide, self.for_burst, self.for_packet))) != 1:
            raise ConfigError("a policy needs exactly one of decide, for_burst and for_packet")
        for field in self.fields:
            if field not in _FIELDS:
                raise ConfigError(f"fields must be among {', '.join(_FIELDS)}, got {field!r}")

    @classmethod
    def from_function(
        cls, function: Any, *, per: str = "burst", fields: Sequence[str] = tuple(_FIELDS)
    ) -> "Policy":
        """Make a policy of a C function, called in the worker without the GIL.

        Parameters
        ----------
        function : int, ctypes function, PyCapsule, or object with ``address`` (Numba's ``cfunc``)
            ``per="burst"``: ``void f(const struct packet *packets, struct rule_action *actions,
            uint32_t count, uint8_t *umem)``.
            ``per="packet"``: ``void f(const struct packet *packet, struct rule_action *action,
            uint8_t *data)``.  The structs are ``records.PACKET`` and ``records.ACTION``; actions
            are zero (``pass``) when it is called; the packet's bytes may be changed.
        per : str

        Raises
        ------
        ConfigError
            If it is none of these.
        """
        if per not in ("burst", "packet"):
            raise ConfigError(f"per must be burst or packet, got {per!r}")
        address = _address_of(function)
        if per == "burst":
            return cls(fields=fields, for_burst=address, owner=function)
        return cls(fields=fields, for_packet=address, owner=function)

    @property
    def mask(self) -> bytes:
        """The bits of a key that ``fields`` name: 64 bytes."""
        mask = bytearray(64)
        for field in self.fields:
            first, end = _FIELDS[field]
            mask[first:end] = b"\xff" * (end - first)
        mask[_FLAGS] = 0xFF  # whether there are ports is no field, and cheap
        return bytes(mask)


def load_policy(text: str) -> Policy:
    """Return the policy that a Python file defines.

    Parameters
    ----------
    text : str
        ``FILE`` or ``FILE:NAME``; the name is ``policy`` where not given.  What it names is a
        ``Policy``, or a function for its ``decide``.

    Raises
    ------
    ConfigError
        If the file cannot be run, or does not define it.
    """
    import runpy

    path, _, name = text.rpartition(":") if ":" in text else (text, "", "")
    name = name or "policy"
    try:
        defined = runpy.run_path(path)
    except OSError as error:
        raise ConfigError(f"policy {path}: {error.strerror or error}") from None
    except Exception as error:
        raise ConfigError(f"policy {path}: {type(error).__name__}: {error}") from None
    found = defined.get(name)
    if isinstance(found, Policy):
        return found
    if not callable(found):
        raise ConfigError(f"policy {path} defines no {name}: a Policy, or a function of a batch")
    return Policy(found)


def _address_of(function: Any) -> int:
    if isinstance(function, int):
        address = function
    elif hasattr(function, "address"):
        address = int(function.address)
    elif hasattr(function, "argtypes"):  # any function type of ctypes
        import ctypes

        address = ctypes.cast(function, ctypes.c_void_p).value or 0
    elif type(function).__name__ == "PyCapsule":
        address = _capsule_address(function)
    else:
        raise ConfigError(
            "a C function is an address, a ctypes function, a PyCapsule or a Numba cfunc; "
            f"got {type(function).__name__}"
        )
    if not address:
        raise ConfigError("a C function must not be NULL")
    return address


def _capsule_address(capsule: Any) -> int:
    import ctypes

    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule)) or 0


def asker(
    policy: Policy,
    memory: Callable[[], "tuple[Any, Any]"],
    frames: "NDArray[np.uint8]",
    links: Mapping[str, int],
) -> Callable[[int], None] | None:
    """Return what a ``Decider`` calls to ask ``policy``; None if that is a C function.

    Parameters
    ----------
    memory : callable
        Returns the decider's ``packets`` and ``actions``; not called before the first question.
    """
    decide = policy.decide
    if decide is None:
        return None
    import numpy as np

    from l2fwd.records import ACTION, PACKET

    def ask(count: int) -> None:
        packets, actions = (np.asarray(each) for each in memory())
        asked = packets[:count].view(PACKET)[:, 0]
        answers = decide(Batch(asked, frames, links))
        if not isinstance(answers, np.ndarray) or answers.dtype != ACTION:
            raise ConfigError("a policy must return actions: an array of records.ACTION")
        if answers.shape != (count,):
            raise ConfigError(f"a policy must return {count} actions, got shape {answers.shape}")
        actions[:count].view(ACTION)[:, 0] = answers

    return ask
