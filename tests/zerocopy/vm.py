"""Run a command in a throw-away VM whose NICs do AF_XDP zero-copy, and return its exit code.

    python tests/zerocopy/vm.py [options] -- COMMAND [ARGUMENT]...

QEMU emulates Intel 82576 NICs (driver igb) and virtio-net, wired in pairs: zc0-zc1, zc2-zc3.  The
file system is the host's, with changes kept in memory: it runs the host's own Python and what was
built here.  The exit code is the command's; 124: out of time; 125: the VM failed; 77 with
--or-skip turns to 0: no kernel or QEMU can be had.
"""

import argparse
import os
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from packages import HERE, Machine, UnreachableError, fetch

DEVICES = {
    "igb": ("igb", "igb"),
    # Without IOMMU_PLATFORM the driver bypasses the DMA API, and refuses zero-copy.
    "virtio": ("virtio-net-pci,disable-legacy=on,iommu_platform=on", "virtio_net"),
    "plain": ("virtio-net-pci", "virtio_net"),  # as most VMs have it
    "e1000e": ("e1000e", "e1000e"),  # no native XDP at all
}
PASSED_ON = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV")
OUT_OF_TIME = 124
VM_FAILED = 125
CANNOT_HAVE = 77


def main() -> int:
    arguments = parse_arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        machine = fetch(arguments.cache)
    except UnreachableError as error:
        print(f"SKIPPED: zero-copy VM: {error}", flush=True)
        return 0 if arguments.or_skip else CANNOT_HAVE
    with tempfile.TemporaryDirectory() as job:
        write_job(Path(job), arguments)
        return run(machine, Path(job), arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    add = parser.add_argument
    add("--cache", type=Path, default=Path(base, "l2fwd-vm"), help="folder of what was fetched")
    add("--nics", type=devices, default=["igb"] * 4, metavar="NIC=COUNT,...",
        help=f"wired in pairs; of {', '.join(DEVICES)} (igb=4)")  # fmt: skip
    add("--cpus", type=int, default=2, help="an igb starts with as many queues (2)")
    add("--memory", type=int, default=2048, help="MiB (2048)")
    add("--limit", type=float, default=1800, help="seconds for all of it (1800)")
    add("--or-skip", action="store_true", help="exit 0 where packages cannot be had")
    add("--console", action="store_true", help="show the guest kernel's messages")
    add("command", nargs="+")
    return parser.parse_args()


def devices(text: str) -> list[str]:
    """Return the NICs of "igb=2,virtio=2", one by one."""
    parts = [part.partition("=") for part in text.split(",")]
    return [name for name, _, count in parts for _ in range(int(count)) if DEVICES[name]]


def write_job(job: Path, arguments: argparse.Namespace) -> None:
    """Write what the guest reads: settings, the command, and the script that runs it."""
    drivers = " ".join(dict.fromkeys(DEVICES[name][1] for name in arguments.nics))
    (job / "settings").write_text(f"drivers='{drivers}'\nnics={len(arguments.nics)}\n")
    for name in ("boot", "session"):
        (job / name).write_bytes((HERE / f"{name}.sh").read_bytes())
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines += [
        f"cd {shlex.quote(os.getcwd())}",
        "ulimit -l unlimited",
        shlex.join(arguments.command),
    ]
    (job / "command").write_text("\n".join(lines) + "\n")


def run(machine: Machine, job: Path, arguments: argparse.Namespace) -> int:
    """Boot, pass on what the command says, and return its exit code; the VM is gone after."""
    console = job / "console"
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        *machine.qemu,
        *qemu_options(machine, job, arguments),
    ]
    vm = subprocess.Popen(
        command, env=os.environ | machine.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=(job / "qemu").open("wb"),
    )  # fmt: skip
    try:
        in_time = pass_on(vm, arguments.limit)
    finally:
        vm.kill()
        vm.wait()
    said = console.read_text(errors="replace") if console.exists() else ""
    if arguments.console:
        print(said, file=sys.stderr)
    status = job / "status"
    if status.exists() and status.stat().st_size:
        return int(status.read_text())
    if not in_time:
        print(f"vm: the limit of {arguments.limit:g} s is over", file=sys.stderr)
        return OUT_OF_TIME
    tail = [*(job / "qemu").read_text().splitlines()[-5:], *said.splitlines()[-20:]]
    print("vm: ended without a result", *tail, sep="\n", file=sys.stderr)
    return VM_FAILED


def pass_on(vm: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Write to stdout what the VM writes, until it ends; False if time is up before."""
    assert vm.stdout is not None
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(vm.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                continue
            data = os.read(vm.stdout.fileno(), 1 << 16)
            if not data:
                return True
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
    return False


def qemu_options(machine: Machine, job: Path, arguments: argparse.Namespace) -> list[str]:
    accel, cpu = accelerator()
    options = [
        "-M", "q35", "-accel", accel, "-cpu", cpu, "-smp", str(arguments.cpus),
        "-m", str(arguments.memory), "-nodefaults", "-display", "none", "-no-reboot",
        "-kernel", str(machine.kernel), "-initrd", str(machine.initramfs),
        "-append", "console=ttyS0 quiet panic=-1 nokaslr mitigations=off",
        "-chardev", f"file,id=console,path={job}/console", "-serial", "chardev:console",
        "-chardev", "file,id=out,path=/proc/self/fd/1,append=on",
        "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=out,name=out",
    ]  # fmt: skip
    options += share("root", Path("/"), ",readonly=on") + share("job", job)
    for i, name in enumerate(arguments.nics):
        device, _ = DEVICES[name]
        options += [
            "-device", f"pcie-root-port,id=port{i},chassis={i + 1},slot={i + 1}",
            "-netdev", f"hubport,id=net{i},hubid={i // 2}",
            "-device", f"{device},bus=port{i},netdev=net{i},romfile=,mac=02:5a:43:00:00:{i:02x}",
        ]  # fmt: skip
    return options


def share(tag: str, path: Path, more: str = "") -> list[str]:
    """Show a folder of the host to the guest."""
    local = f"local,id={tag},path={str(path).replace(',', ',,')}"
    return [
        "-fsdev", f"{local},security_model=none,multidevs=remap{more}",
        "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}",
    ]  # fmt: skip


def accelerator() -> tuple[str, str]:
    """KVM only where the CPU itself virtualises: that /dev/kvm opens says little."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if flags & {"vmx", "svm"} and os.access("/dev/kvm", os.W_OK):
        return "kvm", "host"
    return "tcg,thread=multi", "max,la57=off"


if __name__ == "__main__":
    sys.exit(main())
