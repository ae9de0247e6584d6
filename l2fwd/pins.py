"""Pins: files of a BPF file system that hold a bpf_link when its process is gone.

The bpf_link holds the program, and that its maps: one pin a link is all that is needed.  A
folder of pins is made with mode 0700, a pin with 0600, both ours; no other folder is looked
into.  The name of a pin tells what unloading has to undo beside it.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from l2fwd import _bpf, link
from l2fwd.abi import PROGRAM_PREFIX
from l2fwd.errors import ConfigError, KernelError, L2fwdError, kernel_error

_PLAIN: Final = f"{PROGRAM_PREFIX}link_"
_PROMISCUOUS: Final = f"{PROGRAM_PREFIX}promisc_"  # and the link was made so for it
_OTHERS: Final = 0o077


class PinFolder:
    """A folder for the pins of one job, made if need be.

    Parameters
    ----------
    path : str

    Raises
    ------
    ConfigError
        If it is not on a BPF file system, or is there and not empty, not ours, or open to
        other users.
    KernelError
        If it cannot be made or opened.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._names: dict[str, str] = {}  # of the pins, by link
        with ExitStack() as undo:
            self._is_made = _make(self.path)
            if self._is_made:
                undo.callback(self.path.rmdir)
            # Pins go in by this descriptor, into what was checked and nothing else.
            self._fd = _open(self.path)
            undo.callback(os.close, self._fd)
            _check(self.path, self._fd)
            undo.pop_all()

    def pin(self, link_fd: int, ifname: str) -> None:
        """Hold a bpf_link, and keep its link promiscuous; both outlive this process.

        A pin that an earlier link of this name had is replaced.

        Raises
        ------
        KernelError
        """
        before = self._names.get(ifname)
        # Set already, by others: then it is not ours to take back.
        is_lent = before is not None and before.startswith(_PROMISCUOUS)
        kind = _PROMISCUOUS if is_lent or not link.is_set_promiscuous(ifname) else _PLAIN
        name = kind + ifname.replace(".", "%2E")  # bpf_lookup: no dots; no ifname has a percent
        if before is not None:
            self._unlink(before)
        with _only_ours():
            _bpf.pin(link_fd, f"/proc/self/fd/{self._fd}/{name}", str(self.path / name))
        self._names[ifname] = name
        link.set_promiscuous(ifname, True)

    def remove(self) -> None:
        """Take back every pin, and the folder if it was made here."""
        for ifname, name in self._names.items():
            self._unlink(name)
            _restore(ifname, name)
        self._names.clear()
        if self._is_made:
            with suppress(OSError):  # somebody else has put something there
                self.path.rmdir()

    def close(self) -> None:
        """Leave the pins to themselves."""
        os.close(self._fd)

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)


def find_pin(link_id: int) -> Path | None:
    """Return the file of this user that pins a bpf_link, wherever it is mounted."""
    return next((pin for pin in _our_pins() if _described(pin)[0] == link_id), None)


def remove_pin(pin: Path, ifname: str) -> None:
    """Remove a pin, the pins beside it whose links are gone, and the folder once it is empty.

    Raises
    ------
    KernelError
    """
    try:
        pin.unlink()
        _restore(ifname, pin.name)
        for other in _pins_in(pin.parent):
            if _described(other)[1] == 0:
                other.unlink()
    except OSError as error:
        raise kernel_error(error.errno or 0, "remove pin", str(pin)) from None
    with suppress(OSError):  # not empty
        pin.parent.rmdir()


def _make(path: Path) -> bool:
    """Make the folder; return False where it is there, or cannot be as it is no BPF file system."""
    if not _bpf.is_bpf_fs(str(path.parent)):
        return False
    if "." in path.name:
        raise ConfigError(f"pin {path}: names on a BPF file system have no dot; choose another")
    try:
        with _only_ours():
            path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    except OSError as error:
        raise kernel_error(error.errno or 0, "make pin folder", str(path)) from None
    return True


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _not_bpf_fs(path) from None
    except NotADirectoryError:
        raise ConfigError(f"pin {path} is there and is not a folder; choose another") from None
    except OSError as error:
        raise kernel_error(error.errno or 0, "open pin folder", str(path)) from None


def _check(path: Path, fd: int) -> None:
    if not _bpf.is_bpf_fs(f"/proc/self/fd/{fd}"):
        raise _not_bpf_fs(path)
    if not _is_ours(os.fstat(fd)):
        raise ConfigError(f"pin {path} is not this user's alone (mode 0700); choose another")
    held = sorted(os.listdir(fd))
    if held:
        links = " ".join(filter(None, map(_link_of, held)))
        remedy = f"end what it holds with l2fwd unload {links}, or " if links else ""
        raise ConfigError(f"pin {path} is not empty; {remedy}choose another")


def _not_bpf_fs(path: Path) -> ConfigError:
    return ConfigError(
        f"pin {path} is not on a BPF file system; mount -t bpf bpf /sys/fs/bpf and name a folder "
        "there (ip netns exec hides it, nsenter --net does not)"
    )


def _link_of(name: str) -> str:
    """Return the link that a pin is named after, empty if none."""
    kind = next((kind for kind in (_PLAIN, _PROMISCUOUS) if name.startswith(kind)), None)
    return name.removeprefix(kind).replace("%2E", ".") if kind else ""


def _restore(ifname: str, name: str) -> None:
    """Undo what the name of a pin says was done to its link."""
    if name.startswith(_PROMISCUOUS):
        with suppress(L2fwdError):  # the link is gone
            link.set_promiscuous(ifname, False)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & _OTHERS


def _our_pins() -> Iterator[Path]:
    for mount in _bpf_mounts():
        for folder, _, _ in os.walk(mount):
            with suppress(OSError):  # it may go while we look
                if _is_ours(os.stat(folder)):
                    yield from _pins_in(Path(folder))


def _pins_in(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if _link_of(each.name)]


def _described(pin: Path) -> tuple[int, int]:
    """Return (link id, ifindex) of a pin; (0, -1) if it is none of an XDP program."""
    with suppress(KernelError):  # not ours to open, or gone
        found = _bpf.pinned_link(str(pin))
        if found is not None:
            return found[:2]
    return 0, -1


def _bpf_mounts() -> list[str]:
    """List where BPF file systems are mounted, and not hidden by another mount."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        place, kind = line.split()[4], line.partition(" - ")[2].split()[0]
        if kind == "bpf":
            found.append(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place))
    return [place for place in dict.fromkeys(found) if _bpf.is_bpf_fs(place)]


@contextmanager
def _only_ours() -> Iterator[None]:
    """Make files for this user alone, whatever the umask; it is that of the whole process."""
    before = os.umask(_OTHERS)
    try:
        yield
    finally:
        os.umask(before)
