"""Policies: your own code decides what becomes of a packet.

A packet gets to a policy by a rule ``... -> user`` or by the miss policy ``user``.  The answer is
learned by the data path ``hybrid``, so that the later packets of the flow stay in the kernel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from l2fwd.errors import ConfigError, L2fwdError
from l2fwd.policy_batch import PolicyBatch

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

Decide = Callable[[PolicyBatch], "NDArray[Any]"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Your code, in the worker's thread.

    Parameters
    ----------
    decide : callable or None
        ``decide(batch)`` returns one action for each packet of a ``PolicyBatch``, as
        ``batch.actions()`` does.  What it raises is logged, and the batch dropped and counted.
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
        If not exactly one of decide, for_burst and for_packet is given, or a field is unknown.
    """

    decide: Decide | None = None
    fields: Sequence[str] = tuple(_FIELDS)
    for_burst: int = 0
    for_packet: int = 0
    owner: Any = None  # keeps a C function alive

    def __post_init__(self) -> None:
        given = (self.decide is not None, self.for_burst != 0, self.for_packet != 0)
        if sum(given) != 1:
            raise ConfigError("a policy needs exactly one of decide, for_burst and for_packet")
        if self.decide is not None and not callable(self.decide):
            raise ConfigError(f"decide must be callable, got {type(self.decide).__name__}")
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
            are zero (``pass``) when it is called; the packet's bytes may be changed.  An
            ``out_ifindex`` left zero is the other one of IN and OUT.
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
    except (Exception, SystemExit) as error:
        raise ConfigError(f"policy {path}{_describe(error, path)}") from None
    found = defined.get(name)
    if isinstance(found, Policy):
        return found
    if not callable(found):
        raise ConfigError(f"policy {path} defines no {name}: a Policy, or a function of a batch")
    return Policy(found)


def _describe(error: BaseException, path: str) -> str:
    """Say in the rest of a line where a policy's file failed, and why."""
    import traceback

    if isinstance(error, OSError) and error.filename == path:
        return f": {error.strerror}"
    message = " ".join(str(error).split())
    if not isinstance(error, L2fwdError | SyntaxError):
        message = f"{type(error).__name__}: {message}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f", line {lines[-1]}: {message}" if lines else f": {message}"


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
    if not 0 < address < 1 << 64:
        raise ConfigError(f"a C function has an address other than NULL, got {address}")
    return address


def _capsule_address(capsule: Any) -> int:
    import ctypes

    # Prototypes of our own: those of ctypes.pythonapi belong to everybody.
    api, anything = ctypes.pythonapi, ctypes.py_object
    get_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, anything)(("PyCapsule_GetName", api))
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, anything, ctypes.c_char_p)
    return pointer(("PyCapsule_GetPointer", api))(capsule, get_name(capsule)) or 0


def asker(
    policy: Policy, frames: "NDArray[np.uint8]", links: Mapping[str, int]
) -> Callable[[memoryview, memoryview], None] | None:
    """Return what a ``Decider`` calls to ask ``policy``; None if that is a C function."""
    decide = policy.decide
    if decide is None:
        return None
    import numpy as np

    from l2fwd.records import ACTION, PACKET

    def ask(packets: memoryview, actions: memoryview) -> None:
        # A copy: a policy may keep its batch, the worker's memory is used again.
        asked = np.frombuffer(packets, PACKET).copy()
        answers = decide(PolicyBatch(asked, frames, links))
        if not isinstance(answers, np.ndarray) or answers.dtype != ACTION:
            raise ConfigError("a policy must return actions: an array of records.ACTION")
        if answers.shape != asked.shape:
            raise ConfigError(
                f"a policy must return actions of shape {asked.shape}, got {answers.shape}"
            )
        np.frombuffer(actions, ACTION)[:] = answers

    return ask
