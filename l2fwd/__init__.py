"""Ethernet forwarding between NICs at line rate, from Python, on AF_XDP.

``Umem`` and ``XdpSocket`` are the sockets, ``Worker`` the loop, ``Engine`` the whole.  Names
are imported on first use, so that the command line starts quickly.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from l2fwd._worker import Worker
    from l2fwd.batch import Batch
    from l2fwd.config import FlowConfig, ForwardConfig, Rewrite, SocketConfig, UmemConfig
    from l2fwd.engine import Engine
    from l2fwd.errors import ConfigError, KernelError, L2fwdError, RunError, UnsupportedError
    from l2fwd.policy import Policy
    from l2fwd.policy_batch import PolicyBatch
    from l2fwd.records import HashType, RxHas
    from l2fwd.sockets import MultiQueueSocket, SocketStats, XdpSocket
    from l2fwd.xsk import Umem

_HOME: Final = {
    "Worker": "_worker",
    "FlowConfig": "config",
    "ForwardConfig": "config",
    "Rewrite": "config",
    "SocketConfig": "config",
    "UmemConfig": "config",
    "Engine": "engine",
    "ConfigError": "errors",
    "KernelError": "errors",
    "L2fwdError": "errors",
    "RunError": "errors",
    "UnsupportedError": "errors",
    "Policy": "policy",
    "PolicyBatch": "policy_batch",
    "HashType": "records",
    "RxHas": "records",
    "Umem": "xsk",
    "Batch": "batch",
    "MultiQueueSocket": "sockets",
    "SocketStats": "sockets",
    "XdpSocket": "sockets",
}

__all__ = [
    "Batch",
    "ConfigError",
    "Engine",
    "FlowConfig",
    "ForwardConfig",
    "HashType",
    "KernelError",
    "L2fwdError",
    "MultiQueueSocket",
    "Policy",
    "PolicyBatch",
    "Rewrite",
    "RunError",
    "RxHas",
    "SocketConfig",
    "SocketStats",
    "Umem",
    "UmemConfig",
    "UnsupportedError",
    "Worker",
    "XdpSocket",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'l2fwd' has no attribute {name!r}")
    return getattr(importlib.import_module(f"l2fwd.{_HOME[name]}"), name)
