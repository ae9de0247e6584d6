"""One link of a job: its program, how that is attached, and what it needs to receive."""

import errno
import socket
import time
from typing import Final

from l2fwd import bpf, link
from l2fwd.config import ForwardConfig
from l2fwd.errors import ConfigError, KernelError, RunError

_CARRIER_POLL_SECONDS: Final = 0.02


class Side:
    """One link of the job: its program, and how that is attached."""

    def __init__(self, name: str, config: ForwardConfig) -> None:
        self.name = name
        self.config = config
        self.link = link.find_link(name)
        self.attachment: bpf.Attachment | None = None
        self.program: bpf.Program | None = None
        self._promiscuous: socket.socket | None = None
        self._check_link()

    def _check_link(self) -> None:
        if not self.link.is_up:
            raise ConfigError(f"{self.name} is down; bring it up: ip link set {self.name} up")
        self.config.umem.check_mtu(self.name, self.link.mtu)

    def find_again(self) -> None:
        """Look the link up anew; it has a new ifindex when it was created again.

        Raises
        ------
        ConfigError
            If it is not there, or not up yet.
        """
        self.link = link.find_link(self.name)
        self._check_link()

    def attach(self) -> list[str]:
        """Put our program on the link; return what the user should know."""
        notes = self._clear_the_way()
        if self.program is None:
            sizes = {"sockets": max(self.link.rx_queue_count, 1)}
            self.program = bpf.Program("afxdp", sizes)
        config = self.config
        self.attachment = self.program.attach(
            self.link.ifindex, self.name, config.mode, chain=config.chain
        )
        if config.strict and self.attachment.notes:
            raise RunError(f"--strict: {self.attachment.notes[0]}")
        # A forwarder takes in what is addressed to others; the hold ends with the process.
        self._promiscuous = link.hold_promiscuous(self.link.ifindex)
        return notes + self.attachment.notes

    def _clear_the_way(self) -> list[str]:
        """Remove a stale program of ours; refuse to touch any other."""
        found = bpf.describe_attached(self.link.ifindex)
        if not found.program_id or self.config.chain:
            return []
        if found.is_ours and not found.pids:
            bpf.unload(self.link.ifindex, self.name)
            return [f"{self.name}: removed {found}, left by an engine that was killed"]
        remedy = (
            "stop that engine first"
            if found.is_ours
            else f"detach it (ip link set {self.name} xdp off) or share the link with --chain"
        )
        raise KernelError(errno.EBUSY, "attach to", self.name, f"{found} is there; {remedy}")

    def is_attached(self) -> bool:
        """Tell whether our program is still on the link.

        Raises
        ------
        KernelError
            ENODEV once the link is gone from this namespace.
        """
        if self.attachment is None:
            return False
        current = bpf.attached_program_id(self.link.ifindex)
        return current == self.attachment.program_id

    def detach(self) -> None:
        if self.attachment is not None:
            self.attachment.detach()
            self.attachment = None
        if self._promiscuous is not None:
            self._promiscuous.close()
            self._promiscuous = None

    def close(self) -> None:
        self.detach()
        if self.program is not None:
            self.program.close()
            self.program = None

    def wait_for_carrier(self) -> bool:
        """Wait until the link carries: attaching resets the rings of Intel NICs."""
        deadline = time.monotonic() + self.config.carrier_timeout
        while not link.find_link(self.name).has_carrier:
            if time.monotonic() > deadline:
                return False
            time.sleep(_CARRIER_POLL_SECONDS)
        return True
