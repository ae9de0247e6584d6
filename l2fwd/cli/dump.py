"""``dump LINK``: print the packets that arrive on a link, or write them to a capture file."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from l2fwd.cli import silence_stdout
from l2fwd.cli.options import add_bind_options, add_mode_options
from l2fwd.errors import ConfigError, RunError
from l2fwd.pcap import FORMATS, MAX_SNAPLEN, CaptureWriter

HELP = (
    "Print the packets that arrive on a link, or write them to a capture file, with times in ns "
    "(of the reading). AF_XDP TAKES THEM AWAY FROM THE HOST: while this runs nothing that "
    "arrives on these queues reaches its stack, a shell over this link included, unless "
    "--give-back is given. What the host sends is not seen."
)
_TAKEN: Final = "what arrives is taken away from the host"
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    add = parser.add_argument
    add("link", metavar="LINK", help="link that packets arrive on")
    add("-w", "--write", metavar="FILE", help="capture file to write, - for standard output")
    add("--format", help="pcap or pcapng (default: pcap if FILE ends so, else pcapng)")
    add("-c", "--count", type=int, default=0, metavar="N", help="end after N packets")
    add("-s", "--snaplen", type=int, default=0, metavar="N",
        help="keep the first N bytes of each (default: all)")  # fmt: skip
    add("-x", "--hex", action="store_true", help="print the bytes, too")
    add("--give-back", action="store_true",
        help="the host gets the packets, too, some 10 us each; needs native mode")  # fmt: skip
    add("-q", "--queues", "--queue", default="all",
        help="queue ids, as 0,2 or 0-3, or all (default)")  # fmt: skip
    add_mode_options(parser, "-m")
    add_bind_options(parser, copy_letter="")  # -c is tcpdump's
    add("-f", "--frame-size", type=int, default=2048, help="bytes per frame: 2048 or 4096")
    add("--ring-size", type=int, default=2048,
        help="packets of a queue that wait to be read (2048)")  # fmt: skip
    add("--promiscuous", action=argparse.BooleanOptionalAction, default=True,
        help="also what is addressed to others (default)")  # fmt: skip
    add("-d", "--duration", type=float, help="seconds to run (default: until stopped)")
    add("--json", action="store_true", help="one JSON object per line, a packet each")
    add("-Q", "--quiet", action="store_true", help="only what is obtained and the summary")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is touched.

    Raises
    ------
    ConfigError
    """
    if args.duration is not None and not 0 <= args.duration < 1e9:
        raise ConfigError(f"duration must be a number of seconds from 0 on, got {args.duration}")
    if args.count < 0:
        raise ConfigError(f"count must be 0 (no end) or more, got {args.count}")
    if not 0 <= args.snaplen <= MAX_SNAPLEN:
        raise ConfigError(f"snaplen must be in [0, {MAX_SNAPLEN}] bytes, got {args.snaplen}")
    if args.write is None and args.format is not None:
        raise ConfigError("format is about a file: name it with --write FILE")
    if args.format not in (None, *FORMATS):
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {args.format!r}")
    if args.write is not None and args.hex:
        raise ConfigError("hex is for packets that are printed; --write prints none")
    if args.write == "-" and sys.stdout.isatty():
        raise ConfigError("write - sends bytes to a terminal: send standard output elsewhere")


def run(args: argparse.Namespace) -> int:
    """Dump until stopped; return 0."""
    check(args)

    from l2fwd.capture import Capture
    from l2fwd.config import parse_indices
    from l2fwd.link import find_link, hold_promiscuous
    from l2fwd.sockets import MultiQueueSocket

    ifindex = find_link(args.link).ifindex
    with ExitStack() as undo:
        if args.promiscuous:
            undo.enter_context(hold_promiscuous(ifindex))
        sockets = undo.enter_context(
            MultiQueueSocket(
                args.link,
                parse_indices(args.queues, "queues"),
                mode=args.mode,
                bind=args.bind,
                frames=args.ring_size,
                ring_size=args.ring_size,
                frame_size=args.frame_size,
            )
        )
        if args.give_back:
            sockets.sockets[0].give_to_host(())  # says so at once if that cannot be
        take = _taker(args, undo)  # after all that may fail: an old file is not emptied for it
        capture = Capture(
            sockets, count=args.count, duration=args.duration, give_back=args.give_back
        )
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda *_: capture.stop())
        try:
            _say(args, _ready(sockets, args.give_back))
            for burst in capture:
                take(burst)
        except BrokenPipeError:  # who was reading has seen enough
            silence_stdout()
        finally:
            _say(args, _summary(sockets, capture))
    return 0


def _taker(args: argparse.Namespace, undo: ExitStack) -> Callable[[Any], None]:
    """Return what is done with a burst: written, printed, or nothing."""
    if args.write is not None:
        return _writer(args, undo)
    return _nothing if args.quiet else _printer(args)


def _nothing(burst: Any) -> None:
    pass


def _writer(args: argparse.Namespace, undo: ExitStack) -> Callable[[Any], None]:
    default = "pcap" if args.write.endswith(".pcap") else "pcapng"
    file = _open(args.write, undo)
    name = default if args.format is None else args.format
    with _failing_as_run_error(args.write):
        writer = CaptureWriter(file, name, snaplen=args.snaplen, link=args.link)
        file.flush()

    def write(burst: Any) -> None:
        with _failing_as_run_error(args.write):
            for packet in burst.packets:
                writer.write(packet, burst.time_ns, burst.queue)
            file.flush()

    return write


@contextmanager
def _failing_as_run_error(path: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if path == "-":
            silence_stdout()
        raise RunError(f"write {path}: {error.strerror}") from None


def _open(path: str, undo: ExitStack) -> IO[bytes]:
    if path == "-":
        return sys.stdout.buffer
    try:
        file = Path(path).open("wb")  # noqa: SIM115 - closed by undo
    except OSError as error:
        raise ConfigError(f"write {path}: {error.strerror}") from None
    undo.callback(_close, file)
    return file


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # what could not be written was said by the flush before
        file.close()


def _printer(args: argparse.Namespace) -> Callable[[Any], None]:
    from l2fwd.dissect import hex_lines, line_of, words_of

    kept = args.snaplen or None

    def show(burst: Any) -> None:
        for packet in burst.packets:
            if args.json:
                head = {"event": "packet", "time_ns": burst.time_ns, "queue": burst.queue}
                data = {"hex": packet[:kept].hex()} if args.hex else {}
                print(json.dumps(head | {"length": len(packet)} | words_of(packet) | data))
                continue
            lines = hex_lines(packet[:kept]) if args.hex else []
            print(line_of(packet, burst.time_ns, burst.queue), *lines, sep="\n")
        print(end="", flush=True)

    return show


def _ready(sockets: Any, give_back: bool) -> dict[str, Any]:
    first = sockets.sockets[0]
    return {
        "event": "ready",
        "link": first.link,
        "queues": [each.queue for each in sockets.sockets],
        "attach_mode": first.attach_mode,
        "bind_mode": "zero-copy" if first.is_zero_copy else "copy",
        "notes": first.notes,
        "given_back": give_back,
    }


def _summary(sockets: Any, capture: Any) -> dict[str, Any]:
    total = sockets.stats()[0]
    return {
        "event": "summary",
        "packets": capture.packet_count,
        "given_back": capture.given_count,
        "bytes": total.rx_bytes,
        "unread": total.frames["rx"],
        "drops": total.drops,
        "kernel": total.kernel,
    }


def _say(args: argparse.Namespace, event: dict[str, Any]) -> None:
    """Tell what was obtained, or the summary: as JSON among the packets, else beside them."""
    out = sys.stderr if args.write == "-" or not args.json else sys.stdout
    if args.json:
        print(json.dumps(event), file=out, flush=True)
        return
    if event["event"] == "ready":
        for note in event["notes"]:
            print(f"l2fwd: warning: {note}", file=out)
        queues = ", ".join(map(str, event["queues"]))
        line = (
            f"{event['link']} queue {queues}: {event['attach_mode']} XDP, {event['bind_mode']}; "
            + ("the host gets a copy" if event["given_back"] else _TAKEN)
        )
    else:
        from l2fwd.stats import drops_text

        line = (
            f"{event['packets']:,} packets, {event['bytes']:,} bytes; "
            + (f"given back {event['given_back']:,}; " if args.give_back else "")
            + f"unread {event['unread']:,}; drops: {drops_text(event['drops'])}"
        )
    print(line, file=out, flush=True)
