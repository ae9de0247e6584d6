"""Other people's forwarders on a bed: what is compared with, and how each is started.

DPDK's testpmd is found if it is installed (apt install dpdk-dev).  xdpsock and xsk_fwd, of
xdp-project/bpf-examples, are named by the user.  The Linux bridge, tc and AF_PACKET are always
there.  Each runs on the engine's CPU, in copy mode on veths.

On NICs a peer gets no load before its programs are on the links and the carrier is back, which
Intel's drivers lose when a program comes.
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.bed import ENGINE_CPU, GENERATOR_CPU, BenchBed, Engine, Place, Running
from bench.engines import process, require_running
from l2fwd import link
from l2fwd.errors import ConfigError, RunError

_BRIDGE: Final = "br0"
_ALL_TYPES: Final = 0x0003  # ETH_P_ALL
_BUFFER: Final = 4096
_STARTS: Final = 5
_BUSY: Final = "busy"
_SETTLE_SECONDS: Final = 20.0  # testpmd attaches after some
_LOOK_SECONDS: Final = 0.1


def xdpsock(path: str, *letters: str) -> Engine:
    """Return xdpsock on one link; its letters say what it does: ``-l -N -c``."""
    command = [path, "-i", "{entry}", "-q", "0", *letters]
    return _settled(_command(command, "xdpsock", folder=str(Path(path).resolve().parent)))


def xsk_fwd(path: str) -> Engine:
    """Return xsk_fwd between both links.

    It fills its fill rings only after socket and program are there, and igb looks into an empty
    one just once: on NICs both links are restarted for it.
    """
    command = [path, "-c", str(ENGINE_CPU), "-i", "{entry}", "-q", "0", "-i", "{exit}", "-q", "0"]
    return _settled(_command(command, "xsk_fwd"), restart=True)


def testpmd(forward_mode: str, *, force_copy: bool = True) -> Engine:
    """Return DPDK's forwarder over its AF_XDP driver, one worker; ``io``, ``macswap`` ...

    In zero-copy it does not busy-poll, as no other here does: igb stops sending then.
    """
    how = "force_copy=1" if force_copy else "busy_budget=0"

    @contextmanager
    def run(bed: BenchBed) -> Iterator[Running]:
        names = dict.fromkeys((bed.entry.ifname, bed.exit.ifname))
        devices = [f"--vdev=net_af_xdp{i},iface={name},{how}" for i, name in enumerate(names)]
        command = [
            *("dpdk-testpmd", "-l", f"{GENERATOR_CPU},{ENGINE_CPU}", "--no-huge", "-m", "512"),
            *("--no-pci", "--no-telemetry", f"--file-prefix={bed.entry.netns}", *devices, "--"),
            *(f"--forward-mode={forward_mode}", "--auto-start", "--nb-cores=1"),
            "--total-num-mbufs=16384",
        ]
        with process(bed.entry.netns, command) as running:
            require_running(running, "dpdk-testpmd")
            yield Running(running.pid)

    return _settled(run)


def has_testpmd() -> bool:
    """Tell whether DPDK's testpmd, and its AF_XDP driver, are installed."""
    return shutil.which("dpdk-testpmd") is not None


def packet_loop(bed: BenchBed) -> AbstractContextManager[Running]:
    """Run a Python loop over two AF_PACKET sockets: what one writes without AF_XDP."""
    command = [sys.executable, "-m", "bench.peers", bed.entry.ifname, bed.exit.ifname]
    return _command(command, "AF_PACKET loop")(bed)


@contextmanager
def bridge(bed: BenchBed) -> Iterator[Running]:
    """Run the kernel's learning bridge."""
    links = (bed.entry.ifname, bed.exit.ifname)
    with ExitStack() as undo:
        _ip(bed.entry, "link", "add", _BRIDGE, "type", "bridge", "stp_state", "0")
        undo.callback(_ip, bed.entry, "link", "del", _BRIDGE)
        _no_filters(bed.entry)
        for ifname in links:
            _ip(bed.entry, "link", "set", ifname, "master", _BRIDGE)
            undo.callback(_ip, bed.entry, "link", "set", ifname, "nomaster")
        _ip(bed.entry, "link", "set", _BRIDGE, "up")
        yield Running()


def _no_filters(place: Place) -> None:
    """br_netfilter, where built in, would cost the bridge a third of its rate."""
    with link.in_netns(place.netns):
        subprocess.run(
            ["sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=0"],
            capture_output=True, check=False,
        )  # fmt: skip


@contextmanager
def mirred(bed: BenchBed) -> Iterator[Running]:
    """Redirect by tc: a filter that takes every packet, and the action mirred."""
    with ExitStack() as undo:
        for inward, outward in ((bed.entry, bed.exit), (bed.exit, bed.entry)):
            _tc(inward, "qdisc", "add", "dev", inward.ifname, "clsact")
            undo.callback(_tc, inward, "qdisc", "del", "dev", inward.ifname, "clsact")
            _tc(
                inward, "filter", "add", "dev", inward.ifname, "ingress", "protocol", "all",
                "u32", "match", "u32", "0", "0",
                "action", "mirred", "egress", "redirect", "dev", outward.ifname,
            )  # fmt: skip
        yield Running()


def _command(command: list[str], name: str, *, folder: str | None = None) -> Engine:
    """Return a program that is started in the engine's namespace and lives until the end."""

    @contextmanager
    def run(bed: BenchBed) -> Iterator[Running]:
        words = [
            word.format(entry=bed.entry.ifname, exit=bed.exit.ifname) if "{" in word else word
            for word in command
        ]
        with ExitStack() as undo:
            running = _start(undo, bed.entry.netns, words, name, folder)
            yield Running(running.pid)

    return run


def _settled(engine: Engine, *, restart: bool = False) -> Engine:
    """Return an engine that on NICs is ready when programs and carrier are there."""

    @contextmanager
    def run(bed: BenchBed) -> Iterator[Running]:
        with engine(bed) as running:
            if not bed.is_veth:
                places = tuple(dict.fromkeys((bed.entry, bed.exit)))
                _wait_for_programs(places)
                if restart:
                    for place in places:
                        _run(place, "ethtool", "-r", place.ifname)
                    _wait_for_programs(places)
            yield running

    return run


def _wait_for_programs(places: Iterable[Place]) -> None:
    """Wait until each link has a program and a carrier; the load's own wait tells if one fails."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    for place in places:
        with link.in_netns(place.netns):
            while time.monotonic() < deadline:
                found = link.find_link(place.ifname)
                if found.xdp_program_id and found.has_carrier:
                    break
                time.sleep(_LOOK_SECONDS)


def _start(
    undo: ExitStack, netns: str, words: list[str], name: str, folder: str | None
) -> "subprocess.Popen[bytes]":
    """Start a program; again if its queue is not free yet, as sockets close in the background."""
    for _ in range(_STARTS):
        with ExitStack() as attempt:
            engine = process(netns, words, cpu=ENGINE_CPU, folder=folder)
            running = attempt.enter_context(engine)
            try:
                require_running(running, name)
            except RunError as error:
                if _BUSY not in str(error):
                    raise
                last = error
                continue
            undo.push(attempt.pop_all())
            return running
    raise last


def _ip(place: Place, *arguments: str) -> None:
    _run(place, "ip", *arguments)


def _tc(place: Place, *arguments: str) -> None:
    _run(place, "tc", *arguments)


def _run(place: Place, *command: str) -> None:
    with link.in_netns(place.netns):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(f"{' '.join(command)}: {said[-1] if said else done.returncode}")


def require_file(path: str, option: str) -> None:
    """Refuse a peer that is not there.

    Raises
    ------
    ConfigError
    """
    if path and not Path(path).is_file():
        raise ConfigError(f"{option}: no file {path}")


def _loop(entry: str, out: str) -> None:
    """Forward from one link to the other for ever, a frame a turn."""
    receiver, sender = (socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) for _ in range(2))
    receiver.bind((entry, _ALL_TYPES))
    sender.bind((out, 0))
    frame = memoryview(bytearray(_BUFFER))
    receive, send = receiver.recv_into, sender.send
    while True:
        length = receive(frame)
        try:
            send(frame[:length])
        except OSError:  # ENOBUFS: the veth is full, the frame is lost
            continue


if __name__ == "__main__":
    _loop(*sys.argv[1:])
