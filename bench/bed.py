"""The lab as a bench: frames made in the kernel, forwarded by one engine, counted at the sink.

The generator has CPU 0 and offers several times what an engine carries, so the engine, on
CPU 1, is the limit.  The sink has GRO off and drops in the stack: an XDP program there would
copy every frame that AF_XDP sent (veth_convert_skb_to_xdp_buff).  For engines in the kernel
it has one, as a veth takes redirected frames by its NAPI only; that runs on the engine's CPU.
"""

import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from l2fwd import ethtool, link
from l2fwd._bpf import test_run
from l2fwd.bpf import Attachment, Program
from l2fwd.config import AttachMode
from l2fwd.lab import Bed, Forwarder

GENERATOR_CPU: Final = 0
ENGINE_CPU: Final = 1
_LIVE_FRAMES: Final = 1 << 1  # BPF_F_TEST_XDP_LIVE_FRAMES
_FRAMES_PER_RUN: Final = 1 << 24  # a run costs 20 ms to set up
_FRAMES_PER_BATCH: Final = 256  # TEST_XDP_MAX_BATCH
_HEADER: Final = bytes.fromhex("02 00 00 01 01 02  02 00 00 01 01 01  88 b5")  # experimental
_UDP: Final = (
    bytes.fromhex("020000000002 020000000001 0800")
    + bytes.fromhex("45000032 00000000 40110000 0a4d0001 0a4d0002")
    + bytes.fromhex("04000009 001e0000")
)
_FLOW_SECONDS: Final = 20.0  # testpmd takes a few to start
WARM_UP_SECONDS: Final = 0.3
_STOP_SECONDS: Final = 5.0
_PRIORITY: Final = -20  # the highest of nice(1)
_LOOK_SECONDS: Final = 0.5
_QUIET_CPUS: Final = 0.1


Engine = AbstractContextManager[None]


@contextmanager
def bench_bed(*, in_kernel: bool = False) -> Iterator[Bed]:
    """Make the lab, with a sink that costs the engine little."""
    with ExitStack() as undo:
        bed = undo.enter_context(Bed(f"l2fwd-bench{os.getpid()}"))
        with link.in_netns(bed.sink):
            if in_kernel:
                undo.callback(_drop_all("s0").detach)
            else:
                ethtool.set_features("s0", {"generic-receive-offload": False})
        yield bed


def _drop_all(ifname: str) -> Attachment:
    program = Program("lab_drop")
    return program.attach(link.find_link(ifname).ifindex, ifname, AttachMode.NATIVE)


def forward_rate(
    engine: Engine, bed: Bed, size: int, seconds: float, *, packet: str = "raw", flows: int = 0
) -> float:
    """Return the frames of ``size`` bytes per second that reach the sink through ``engine``.

    ``packet``: ``raw`` or ``udp``; ``flows``: how many IPv4 sources take turns.
    """
    with engine, generator(bed, size, packet, flows):
        _wait_for_flow(bed)
        time.sleep(WARM_UP_SECONDS)
        began, before = time.monotonic(), _received(bed)
        time.sleep(seconds)
        return (_received(bed) - before) / (time.monotonic() - began)


def generator(bed: Bed, size: int, packet: str = "raw", flows: int = 0) -> Engine:
    """Send frames on g0 while the context lasts."""
    return _helper(bed.gen, "generate", str(size), packet, str(flows))


def udp_packet(size: int) -> bytes:
    """Return the UDP packet that ``generator`` sends."""
    return _UDP.ljust(size, b"\0")


def place_napi(bed: Bed) -> None:
    """Have the kernel's side of f0 and s0 run on the engine's CPU, in threads of its own."""
    for netns, ifname in ((bed.fwd, "f0"), (bed.sink, "s0")):
        command = f"echo 1 > /sys/class/net/{ifname}/threaded"
        subprocess.run(["ip", "netns", "exec", netns, "sh", "-c", command], check=True)
        for comm in Path("/proc").glob("[0-9]*/comm"):
            with suppress(OSError):
                if comm.read_text().startswith(f"napi/{ifname}-"):
                    thread = int(comm.parent.name)
                    os.sched_setaffinity(thread, {ENGINE_CPU})
                    os.setpriority(os.PRIO_PROCESS, thread, _PRIORITY)


def wait_until_quiet(seconds: float) -> bool:
    """Wait for at most so long until nothing else keeps a CPU busy; tell whether it came."""
    deadline = time.monotonic() + seconds
    while True:
        before = _idle_seconds()
        time.sleep(_LOOK_SECONDS)
        cpus = os.cpu_count() or 1
        busy = cpus - (_idle_seconds() - before) / _LOOK_SECONDS
        if busy < _QUIET_CPUS:
            return True
        if time.monotonic() > deadline:
            return False


def _idle_seconds() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")  # idle, iowait


def peers() -> dict[str, Callable[[Bed], Engine]]:
    """Return the engines to compare with that are here."""
    found: dict[str, Callable[[Bed], Engine]]
    found = {"af_packet_python": packet_loop}
    if shutil.which("dpdk-testpmd"):
        found["dpdk_testpmd_af_xdp"] = testpmd
    return found


def ours(bed: Bed) -> Engine:
    """Run our engine, copy mode, one worker."""
    return forwarder(bed, "--bind", "copy", "--cpus", str(ENGINE_CPU))


@contextmanager
def forwarder(bed: Bed, *options: str) -> Iterator[None]:
    """Run our engine with options of ``forward``."""
    arguments = ["f0", "f1", *options, "--interval", "0"]
    with Forwarder(bed.fwd, arguments) as forwarder:
        _prefer(forwarder.pid)
        for _ in forwarder.wait_for("ready", _FLOW_SECONDS):
            pass
        yield
        forwarder.stop()


def packet_loop(bed: Bed) -> Engine:
    """Run a Python loop over two AF_PACKET sockets: what one writes without AF_XDP."""
    return _helper(bed.fwd, "loop")


@contextmanager
def testpmd(bed: Bed) -> Iterator[None]:
    """Run DPDK's forwarder over its AF_XDP driver, one worker, frames untouched."""
    devices = [f"--vdev=net_af_xdp{i},iface=f{i},force_copy=1" for i in range(2)]
    command = [
        *("dpdk-testpmd", "-l", f"{GENERATOR_CPU},{ENGINE_CPU}", "--no-huge", "-m", "512"),
        *("--no-pci", "--no-telemetry", f"--file-prefix={bed.name}", *devices, "--"),
        *("--forward-mode=io", "--auto-start", "--nb-cores=1", "--total-num-mbufs=16384"),
    ]
    with process(bed.fwd, command) as running:
        yield
        assert running.stdin is not None
        running.stdin.close()  # "Press enter to exit"
        running.wait(_STOP_SECONDS)


@contextmanager
def _helper(netns: str, *arguments: str) -> Iterator[None]:
    """Run a function of this file in a process of its own."""
    with process(netns, [sys.executable, __file__, *arguments]):
        yield


@contextmanager
def process(
    netns: str,
    command: list[str],
    *,
    output: IO[bytes] | int = subprocess.DEVNULL,
    folder: str | None = None,
    cpu: int | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in a namespace while the context lasts, before whatever else wants a CPU."""
    with link.in_netns(netns):
        running = subprocess.Popen(
            command if cpu is None else ["taskset", "-c", str(cpu), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,  # an autogroup of its own, as the Forwarder has
        )
    with running:
        try:
            _prefer(running.pid)
            yield running
        finally:
            running.terminate()  # a killed tool may leave its program on the link
            with suppress(subprocess.TimeoutExpired):
                running.wait(_STOP_SECONDS)
            running.kill()


def _prefer(pid: int) -> None:
    """Let a process and its threads to come run before whatever else uses the machine."""
    os.setpriority(os.PRIO_PROCESS, pid, _PRIORITY)
    # With autogroups, a priority counts only among the processes of one session.
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(_PRIORITY))


def _wait_for_flow(bed: Bed) -> None:
    deadline = time.monotonic() + _FLOW_SECONDS
    before = _received(bed)
    while _received(bed) == before:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no frame reached the sink in {_FLOW_SECONDS:g} s")
        time.sleep(0.01)


def _received(bed: Bed) -> int:
    return received(bed.sink, "s0")


def received(netns: str, ifname: str) -> int:
    """Return the packets a link has received, from the kernel's own counters."""
    with link.in_netns(netns):
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    (line,) = (line for line in lines if line.strip().startswith(f"{ifname}:"))
    return int(line.split(":")[1].split()[1])


def _generate(size: int, kind: str, flows: int) -> None:
    """Send frames on g0 for ever, as fast as the kernel makes them."""
    os.sched_setaffinity(0, {GENERATOR_CPU})
    program = Program("lab_send")
    program.load()
    program.update("lab_flows", {bytes(4): struct.pack("=II", flows, 0)})
    ifindex = link.find_link("g0").ifindex
    packet = (_UDP if kind == "udp" else _HEADER).ljust(size, b"\0")
    while True:
        test_run(
            program.fd,
            packet,
            repeat=_FRAMES_PER_RUN,
            flags=_LIVE_FRAMES,
            ingress_ifindex=ifindex,
            batch_size=_FRAMES_PER_BATCH,
        )


def _loop() -> None:
    """Forward from f0 to f1 for ever, a frame a turn."""
    os.sched_setaffinity(0, {ENGINE_CPU})
    receiver, sender = (socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) for _ in range(2))
    receiver.bind(("f0", int.from_bytes(_HEADER[12:], "big")))
    sender.bind(("f1", 0))
    frame = memoryview(bytearray(2048))
    receive, send = receiver.recv_into, sender.send
    while True:
        length = receive(frame)
        try:
            send(frame[:length])
        except OSError:  # ENOBUFS: the veth is full, the frame is lost
            continue


if __name__ == "__main__":
    if sys.argv[1] == "generate":
        _generate(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        _loop()
