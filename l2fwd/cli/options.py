"""What the traffic tools have in common: xdpsock's letters and long names, and how they run."""

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from l2fwd.config import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_BUSY_POLL_BUDGET,
    DEFAULT_COALESCE_US,
    DEFAULT_FRAME_SIZE,
    DEFAULT_RING_SIZE,
    AttachMode,
    BindMode,
    SocketConfig,
    ToolConfig,
    UmemConfig,
    choose,
    parse_indices,
)
from l2fwd.errors import ConfigError

if TYPE_CHECKING:
    from l2fwd.cli.output import Printer
    from l2fwd.datapath import DataPath

MIN_INTERVAL = 0.01  # seconds; a report costs about a millisecond


def add_links(parser: argparse.ArgumentParser) -> None:
    """Add the links, as words or behind -i."""
    parser.add_argument("names", nargs="*", metavar="LINK", help="links to work on")
    parser.add_argument("-i", "--interface", action="append", default=[], metavar="LINK",
        help="the same; may be repeated")  # fmt: skip


def add_mode_options(parser: argparse.ArgumentParser, *short: str) -> None:
    """Add where the program runs; ``short`` is a letter for --mode."""
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(*short, "--mode", default="auto",
        help="auto (default), native, skb or offload")  # fmt: skip
    for letter, name, value in (("S", "skb", "skb"), ("N", "native", "native")):
        mode.add_argument(f"-{letter}", f"--xdp-{name}", dest="mode", action="store_const",
            const=value, help=f"--mode {value}")  # fmt: skip


def add_bind_options(parser: argparse.ArgumentParser, copy_letter: str = "-c") -> None:
    """Add how frames reach user space; ``copy_letter`` is empty where it means something else."""
    bind = parser.add_mutually_exclusive_group()
    bind.add_argument("--bind", default="auto", help="auto (default), copy or zero-copy")
    for letter, value in ((copy_letter, "copy"), ("-z", "zero-copy")):
        bind.add_argument(*filter(None, [letter]), f"--{value}", dest="bind",
            action="store_const", const=value, help=f"--bind {value}")  # fmt: skip


def add_sleep_options(parser: argparse.ArgumentParser) -> None:
    """Add what a worker does while nothing comes."""
    sleep = parser.add_mutually_exclusive_group()
    sleep.add_argument("-p", "--poll", dest="busy_poll", action="store_false", default=False,
        help="sleep while there is nothing to do (default)")  # fmt: skip
    sleep.add_argument("--busy-poll", action="store_true",
        help="never sleep: a whole CPU for each worker")  # fmt: skip
    parser.add_argument("--coalesce", type=int, default=DEFAULT_COALESCE_US, metavar="USEC",
        help="how long packets that come close after each other may gather "
        f"({DEFAULT_COALESCE_US}); 0: be woken for each")  # fmt: skip
    add_prefer_busy_poll(parser, "-B")


def add_socket_options(
    parser: argparse.ArgumentParser, frames: str = "frames per socket (2 x ring size)"
) -> None:
    """Add how programs are attached, and sockets made; ``frames`` tells what --frames is."""
    add = parser.add_argument
    add("-q", "--queues", "--queue", default="all",
        help="queue ids, as 0,2 or 0-3, or all (default)")  # fmt: skip
    add("--cpus", help="CPU of each worker, queue by queue of each link (default: any)")
    add_mode_options(parser)
    add_bind_options(parser)
    add_sleep_options(parser)
    add("-m", "--no-need-wakeup", dest="need_wakeup", action="store_false",
        help="do not let the driver say when it needs a system call")  # fmt: skip
    add("-b", "--batch-size", type=int,
        help="packets per burst (64, txonly 256, or the ring size if less)")  # fmt: skip
    add("--frames", type=int, help=frames)
    add("--ring-size", type=int, default=DEFAULT_RING_SIZE, help="slots per ring (2048)")
    add_memory_options(parser)
    add("--strict", action="store_true", help="fail rather than fall back")
    add("--force", action="store_true", help="remove another XDP program from the link")


def add_prefer_busy_poll(parser: argparse.ArgumentParser, *letter: str) -> None:
    """Add how the NIC is polled."""
    parser.add_argument(*letter, "--prefer-busy-poll", action="store_true",
        help="never sleep, and poll the NIC in place of its interrupts")  # fmt: skip
    parser.add_argument("--busy-poll-budget", type=int, metavar="N",
        help=f"packets each such poll takes ({DEFAULT_BUSY_POLL_BUDGET})")  # fmt: skip


def busy_poll_budget_of(args: argparse.Namespace) -> int:
    """Return the budget of preferred busy polling, 0 for none.

    Raises
    ------
    ConfigError
    """
    budget: int | None = args.busy_poll_budget
    if budget is None:
        return DEFAULT_BUSY_POLL_BUDGET if args.prefer_busy_poll else 0
    if not args.prefer_busy_poll:
        raise ConfigError("busy-poll-budget is of --prefer-busy-poll: give both")
    if budget < 1:
        raise ConfigError(f"busy-poll-budget must be at least 1, got {budget}")
    return budget


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Add what frames are like, and whether a packet may take several."""
    add = parser.add_argument
    add("-f", "--frame-size", type=int,
        help="bytes per frame: 2048 or 4096 (default: 2048, or 4096 where driver and MTU need it); "
        "or between, with --unaligned")  # fmt: skip
    add("-F", "--frags", action=argparse.BooleanOptionalAction, default=None,
        help="let a packet take several frames (default: where the MTU needs it)")  # fmt: skip
    add("-u", "--unaligned", action="store_true", help="frames of any size, side by side")
    add("--huge-pages", action="store_true", help="take packet memory from 2 MiB pages")


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add how long to run, and what to print."""
    add = parser.add_argument
    add("-d", "--duration", type=float, help="seconds to run (default: until stopped)")
    add("-n", "--interval", type=float, default=1.0, help="seconds between reports (1), 0 for none")
    add("-x", "--extra-stats", action="store_true", help="every reason of a drop, by socket")
    add("-a", "--app-stats", action="store_true", help="system calls and sleeps, by socket")
    add("--json", action="store_true", help="one JSON object per line")
    add("-Q", "--quiet", action="store_true", help="only what is obtained and the summary")


def add_tool_options(parser: argparse.ArgumentParser) -> None:
    """Add all that the tools have in common."""
    add_links(parser)
    add_socket_options(parser)
    add_report_options(parser)


def links_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the links that were named, at least one.

    Raises
    ------
    ConfigError
    """
    names = (*args.names, *args.interface)
    if not names:
        raise ConfigError("link is missing: name one, as 'eth0' or '-i eth0'")
    return names


def check_times(args: argparse.Namespace) -> None:
    """Refuse durations and intervals that cannot be.

    Raises
    ------
    ConfigError
    """
    for name in ("duration", "interval"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < 1e9:
            raise ConfigError(f"{name} must be a number of seconds from 0 on, got {value}")
    if 0 < args.interval < MIN_INTERVAL:
        raise ConfigError(f"interval must be 0 or at least {MIN_INTERVAL} s, got {args.interval}")


def cpus_of(text: str | None) -> tuple[int, ...] | None:
    """Return the CPUs that were named, or None.

    Raises
    ------
    ConfigError
    """
    if text is None:
        return None
    cpus = parse_indices(text, "cpus")
    if cpus is None:
        raise ConfigError("cpus must be a list like 0,2-4, one for each worker; got 'all'")
    return cpus


def socket_settings(args: argparse.Namespace, rings: int) -> dict[str, Any]:
    """Return the settings of a ``JobConfig``; ``rings`` is how many of them fill a UMEM.

    Raises
    ------
    ConfigError
    """
    socket = SocketConfig(
        ring_size=args.ring_size,
        bind_mode=choose(BindMode, args.bind, "bind"),
        need_wakeup=args.need_wakeup,
        busy_poll_budget=busy_poll_budget_of(args),
        frags=args.frags,
    )
    frames = max(rings * args.ring_size, 4) if args.frames is None else args.frames
    batch_size = args.batch_size
    if batch_size is None:
        batch_size = min(DEFAULT_BATCH_SIZE, args.ring_size)
    return {
        "queues": parse_indices(args.queues, "queues"),
        "cpus": cpus_of(args.cpus),
        "mode": choose(AttachMode, args.mode, "mode"),
        "strict": args.strict,
        "batch_size": batch_size,
        "busy_poll": args.busy_poll,
        "coalesce_us": args.coalesce,
        "umem": UmemConfig(
            frame_count=frames,
            frame_size=DEFAULT_FRAME_SIZE if args.frame_size is None else args.frame_size,
            headroom=getattr(args, "headroom", 0),
            huge_pages=args.huge_pages,
            unaligned=args.unaligned,
        ),
        "socket": socket,
        "may_enlarge_frames": args.frame_size is None,
    }


def tool_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a ``ToolConfig`` that the tools share.

    Raises
    ------
    ConfigError
    """
    check_times(args)
    return {"link_names": links_of(args), "force": args.force, **socket_settings(args, 2)}


def tool_config(args: argparse.Namespace, **more: Any) -> ToolConfig:
    """Turn the options that the tools share into a checked configuration.

    Raises
    ------
    ConfigError
    """
    return ToolConfig(**tool_settings(args), **more)


# Options about sockets and workers, and what they are when not given.
SOCKETS_ONLY: Final = {
    "queues": "all",
    "cpus": None,
    "bind": "auto",
    "batch_size": None,
    "frame_size": None,
    "frames": None,
    "huge_pages": False,
    "frags": None,
    "unaligned": False,
    "ring_size": DEFAULT_RING_SIZE,
    "busy_poll": False,
    "coalesce": DEFAULT_COALESCE_US,
    "prefer_busy_poll": False,
    "busy_poll_budget": None,
    "need_wakeup": True,
}


def refuse(args: argparse.Namespace, options: Mapping[str, object], reason: str) -> None:
    """Refuse options that were given, and mean nothing here.

    Raises
    ------
    ConfigError
    """
    for name, default in options.items():
        if getattr(args, name, default) != default:
            raise ConfigError(f"{name.replace('_', '-')} {reason}")


def run_path(
    args: argparse.Namespace, make_path: "Callable[[Printer], DataPath]"
) -> dict[str, Any]:
    """Run a data path until a signal, its end or ``--duration``; return its summary."""
    from l2fwd.cli.output import Printer
    from l2fwd.engine import Engine, stop_on_signals

    printer = Printer(
        json=args.json, quiet=args.quiet,
        extra=getattr(args, "extra_stats", False), app=getattr(args, "app_stats", False),
    )  # fmt: skip
    with printer:
        engine = Engine(make_path(printer), printer, duration=args.duration, interval=args.interval)
        printer.on_closed = engine.stop
        stop_on_signals(engine)
        return engine.run()
