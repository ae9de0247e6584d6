"""What the VM is made of: a kernel, an initramfs and a QEMU, from this host's own Debian archive.

All of it stays in a cache folder; nothing is installed, no root is needed.  Packages come by
name, with apt's signature checks, from wherever this host's apt is set to find them.
"""

import fcntl
import gzip
import lzma
import os
import platform
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
KERNEL_SUITE = "trixie-backports"  # igb does zero-copy since Linux 6.14
MODULES = ("9pnet_virtio", "9p", "overlay", "igb", "virtio_net", "e1000e", "veth", "dummy")


class UnreachableError(Exception):
    """The packages cannot be had here: a reason to skip, not a failure."""


@dataclass(frozen=True)
class Machine:
    """What a VM is started with.

    Attributes
    ----------
    kernel, initramfs : Path
    qemu : tuple of str
        First words of the command line.
    environment : dict
        To be added to the command's.
    """

    kernel: Path
    initramfs: Path
    qemu: tuple[str, ...]
    environment: dict[str, str]


def fetch(cache: Path) -> Machine:
    """Return what is in the cache, after filling it if need be.

    Raises
    ------
    UnreachableError
    """
    if platform.machine() != "x86_64":
        raise UnreachableError(f"the VM is x86-64, this host is {platform.machine()}")
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        contents = f"{KERNEL_SUITE} {MODULES}".encode() + (HERE / "init.sh").read_bytes()
        boot = cache / f"boot-{zlib.crc32(contents):08x}"
        if not (boot / "initramfs").exists():
            _make_boot(Apt(cache), boot)
        qemu, environment = _find_qemu(cache)
    return Machine(boot / "vmlinuz", boot / "initramfs", qemu, environment)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Apt:
    """apt with lists, sources and archives of its own; of the host it reads the configuration.

    Raises
    ------
    UnreachableError
        If this is no Debian, or its archive does not answer.
    """

    def __init__(self, cache: Path) -> None:
        self.root = cache / "apt"
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise UnreachableError("this host has no apt to fetch a kernel and QEMU with")
        self.suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
        for name in ("lists", "archives"):
            (self.root / name / "partial").mkdir(parents=True, exist_ok=True)
        suites = dict.fromkeys((self.suite, f"{self.suite}-backports", KERNEL_SUITE))
        uri = self._archive()
        lines = [f"deb [signed-by={KEYRING}] {uri} {suite} main\n" for suite in suites]
        (self.root / "sources.list").write_text("".join(lines))
        self("apt-get", "update")

    def _archive(self) -> str:
        """Ask the host's apt where its packages come from."""
        form = ("--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages")
        answer = subprocess.run(
            ["apt-get", "indextargets", *form], capture_output=True, text=True, check=False
        ).stdout
        for line in answer.splitlines():
            suite, _, uri = line.partition(" ")
            if suite == self.suite:
                return uri
        raise UnreachableError(
            f"this host's apt has no source for {self.suite or 'a Debian release'}"
        )

    def __call__(self, tool: str, *arguments: str) -> str:
        """Run a tool of apt; return what it says."""
        options = (
            f"Dir::Etc::sourcelist={self.root}/sources.list",
            "Dir::Etc::sourceparts=/dev/null",
            f"Dir::State::lists={self.root}/lists",
            f"Dir::Cache={self.root}",
            "APT::Sandbox::User=root",  # the cache need not be readable for user _apt
            "Debug::NoLocking=1",
            "Acquire::Retries=3",
            "Acquire::http::Timeout=20",
            "APT::Update::Error-Mode=any",
        )
        command = [tool, "-q", *(word for option in options for word in ("-o", option))]
        done = subprocess.run(
            [*command, *arguments], cwd=self.root, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise UnreachableError(f"{tool} {arguments[0]}: {' '.join(last)}")
        return done.stdout

    def unpack(self, target: Path, *packages: str, suite: str = "") -> None:
        """Unpack packages, and what they need that this host lacks, below ``target``."""
        release = ("-t", suite) if suite else ()
        if suite:
            self("apt-get", "install", "-d", "-y", "--no-install-recommends", *release, *packages)
            folder = self.root / "archives"
        else:
            self("apt-get", "download", *packages)
            folder = self.root
        for package in sorted(folder.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, target], check=True)
            package.unlink()

    def kernel_packages(self) -> list[str]:
        """Return the packages that hold the newest kernel: one, or image and modules apart."""

        def needed(package: str) -> list[str]:
            text = self("apt-cache", "depends", package)
            return re.findall(r"Depends: (linux-(?:image|binary|modules)-\d\S*)", text)

        (image, *_) = needed(f"linux-image-amd64/{KERNEL_SUITE}")
        return needed(image) or [image]


# The kernel


def _make_boot(apt: Apt, boot: Path) -> None:
    """Write ``vmlinuz`` and ``initramfs``: busybox, the modules, and init.sh."""
    with tempfile.TemporaryDirectory(dir=apt.root) as name:
        unpacked, root = Path(name, "unpacked"), Path(name, "root")
        apt.unpack(unpacked, *apt.kernel_packages(), "busybox-static")
        (source,) = (path for path in unpacked.glob("**/lib/modules/*") if path.is_dir())
        modules = root / "lib" / "modules" / source.name
        for folder in ("bin", "proc", "sys", "dev", "job", "lower", "upper", "new"):
            (root / folder).mkdir(parents=True)
        modules.mkdir(parents=True)
        busybox = root / "bin" / "busybox"
        shutil.copy2(next(unpacked.glob("**/bin/busybox")), busybox)
        for module in MODULES:
            _add_module(source, modules, module)
        subprocess.run([busybox, "depmod", "-b", root, source.name], check=True)
        shutil.copy2(HERE / "init.sh", root / "init")
        (root / "init").chmod(0o755)
        boot.mkdir(parents=True, exist_ok=True)
        shutil.move(next(unpacked.glob("**/vmlinuz*")), boot / "vmlinuz")
        _write_initramfs(root, boot / "initramfs")


def _add_module(source: Path, target: Path, name: str) -> None:
    """Copy a module, unpacked, and all that it depends on; a built-in one has no file."""
    pattern = re.sub("[-_]", "[-_]", name) + ".ko*"
    for path in source.rglob(pattern):
        copy = target / f"{path.name.partition('.')[0]}.ko"
        if copy.exists():
            return
        data = path.read_bytes()
        data = lzma.decompress(data) if path.suffix == ".xz" else data
        copy.write_bytes(data)
        (depends,) = re.findall(rb"\0depends=([^\0]*)\0", data)[:1] or [b""]
        for needed in filter(None, depends.decode().split(",")):
            _add_module(source, target, needed)


def _write_initramfs(root: Path, target: Path) -> None:
    names = "\n".join(str(path.relative_to(root)) for path in [root, *sorted(root.rglob("*"))])
    archive = subprocess.run(
        ["bin/busybox", "cpio", "-o", "-H", "newc"],
        cwd=root, input=names.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        check=True,
    ).stdout  # fmt: skip
    partial = target.with_suffix(".new")
    partial.write_bytes(gzip.compress(archive, 1))
    partial.rename(target)  # last: what is there is whole


# QEMU


def _find_qemu(cache: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return a QEMU that has the NIC igb (8.0): the host's, or one unpacked into the cache."""
    installed = shutil.which("qemu-system-x86_64")
    if installed and _has_igb((installed,), {}):
        return (installed,), {}
    root = cache / "qemu"
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    environment = {
        "LD_LIBRARY_PATH": f"{libraries}:{root}/lib/x86_64-linux-gnu",
        "QEMU_MODULE_DIR": f"{libraries}/qemu",
    }
    shared = root / "usr" / "share"
    command = (
        f"{root}/usr/bin/qemu-system-x86_64",
        "-L", f"{shared}/qemu",
        "-L", f"{shared}/seabios",
    )  # fmt: skip
    if not _has_igb(command, environment):
        shutil.rmtree(root, ignore_errors=True)
        apt = Apt(cache)
        apt.unpack(root, "qemu-system-x86", suite=f"{apt.suite}-backports")
        if not _has_igb(command, environment):
            raise UnreachableError("the QEMU of this host's archive has no igb, or does not run")
    return command, environment


def _has_igb(command: tuple[str, ...], environment: dict[str, str]) -> bool:
    try:
        answer = subprocess.run(
            [*command, "-device", "help"],
            env=os.environ | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return False
    return '"igb"' in answer.stdout + answer.stderr
