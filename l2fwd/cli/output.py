"""Events of an engine, as JSON lines, plain lines, or a live table."""

import errno
import json
import sys
from collections.abc import Callable
from typing import Any, Final

from l2fwd.cli import silence_stdout
from l2fwd.errors import RunError
from l2fwd.stats import drops_text
from l2fwd.verification import verdict_text

_READER_GONE: Final = (errno.EPIPE, errno.EIO, errno.EBADF)
_SOCKET_DROPS: Final = (
    "rx_oversize_drops", "rx_ring_full_drops", "rx_fill_empty_drops", "rx_invalid_drops",
    "tx_invalid_drops", "tx_full_drops", "tx_busy_drops",
)  # fmt: skip
_APP_COUNTERS: Final = (
    "worker_turns", "worker_sleeps", "worker_naps", "rx_wakeups", "tx_wakeups", "tx_again",
    "tx_no_buffer",
)  # fmt: skip
_COLUMNS: Final = ("rx/s", "tx/s", "drop/s", "rx Mbit/s", "tx Mbit/s")


class Printer:
    """Prints events; a callable, and a context manager that ends the live table.

    Parameters
    ----------
    json : bool
        One object per line, and nothing else; ``ready`` first, warnings from before it next.
    quiet : bool
        No ``stats``.
    extra, app : bool
        A line a socket below each table of rates, and the summary: every reason of a drop;
        system calls and sleeps.

    Attributes
    ----------
    on_closed : callable
        Called once when nobody reads the output any more.
    """

    def __init__(self, *, json: bool, quiet: bool, extra: bool = False, app: bool = False) -> None:
        self._json = json
        self._extra = extra
        self._app = app
        self._verb = ""
        self._quiet = quiet
        self._live = None if json or quiet else _live_table()
        self._lines = 0
        self._held: list[dict[str, Any]] | None = [] if json else None
        self.on_closed: Callable[[], None] = lambda: None

    def __enter__(self) -> "Printer":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._release()

    def __call__(self, event: dict[str, Any]) -> None:
        """Print ``event``.

        Raises
        ------
        RunError
            If the output cannot be written, and not because its reader has gone.
        """
        if self._held is not None and event["event"] == "warning":
            self._held.append(event)  # the first object is "ready"
            return
        try:
            self._print(event)
            self._release()
        except OSError as error:
            silence_stdout()
            if error.errno not in _READER_GONE:
                raise RunError(f"write the output: {error.strerror}") from None
            self.on_closed()

    def _release(self) -> None:
        held, self._held = self._held, None
        for event in held or ():
            self._print(event)

    def _print(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "stats" and self._quiet:
            return
        if self._json:
            print(json.dumps(event), flush=True)
        elif kind == "stats":
            self._print_rates(event)
        elif kind in ("ready", "summary"):
            if self._live is not None:
                self._live.stop()
            self._verb = event.get("verb", self._verb)
            for line in _ready_lines(event) if kind == "ready" else self._closing_lines(event):
                print(line, flush=True)
        elif kind == "pinned":
            print(f"pinned in {event['pin']}: {event['message']}", flush=True)
        else:
            details = ", ".join(_detail(value) for key, value in event.items() if key != "event")
            print(f"l2fwd: {kind.replace('_', ' ')}: {details}", file=sys.stderr, flush=True)

    def _print_rates(self, event: dict[str, Any]) -> None:
        rows = [_row(rate) for rate in event["rates"]]
        more = [line for port in event["ports"] for line in self._more_lines(port)]
        if self._live is not None:
            self._live.start()
            self._live.update(_rich_table(rows, more))
            return
        if self._lines % 20 == 0:
            print(f"{'':<16}" + "".join(f"{column:>14}" for column in _COLUMNS) + "  drops")
        for name, *cells, drops in rows:
            print(f"{name:<16}" + "".join(f"{cell:>14}" for cell in cells) + f"  {drops}")
        for line in more:
            print(line)
        self._lines += 1
        print(end="", flush=True)

    def _closing_lines(self, event: dict[str, Any]) -> list[str]:
        """Return the summary, and what was counted up to the end if that was asked for."""
        asked = event["ports"] if self._extra or self._app else ()
        more = [line.strip() for port in asked for line in self._more_lines(port)]
        return _summary_lines(event, self._verb, split=not asked) + more

    def _more_lines(self, port: dict[str, Any]) -> list[str]:
        """Return what its program has counted, and what ``extra`` and ``app`` ask for."""
        if port["queue"] < 0:  # what was done before any socket
            line = f"  {port['link']} in the kernel drops: {drops_text(port['drops'])}"
            return [line] * self._extra
        name = f"  {port['link']} queue {port['queue']}"
        lines = []
        if "redirected_packets" in port:
            lines.append(f"{name}: {_split(port)}")
        if self._extra:
            drops = [f"{each.removesuffix('_drops')} {port['drops'].get(each, 0):,}"
                     for each in _SOCKET_DROPS]  # fmt: skip
            lines.append(f"{name} drops: {', '.join(drops)}")
        if self._app:
            counts = [f"{each} {port.get(each, 0):,}" for each in _APP_COUNTERS if each in port]
            lines.append(f"{name}: {', '.join(counts)}")
        return lines


def _detail(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _split(port: dict[str, Any]) -> str:
    """Say how a program has split the packets of a queue."""
    return (
        f"passed {port['passed_packets']:,} to the host, "
        f"redirected {port['redirected_packets']:,} to the socket"
    )


def _row(rate: dict[str, Any]) -> list[str]:
    """Format one rate: name, the cells of ``_COLUMNS``, drops by reason."""
    return [
        rate["name"],
        f"{rate['rx_pps']:,.0f}",
        f"{rate['tx_pps']:,.0f}",
        f"{rate['drops_pps']:,.0f}",
        f"{rate['rx_mbit_per_second']:,.1f}",
        f"{rate['tx_mbit_per_second']:,.1f}",
        drops_text(rate["drops"]),
    ]


def _ready_lines(event: dict[str, Any]) -> list[str]:
    """Say per socket, or per link, what was obtained."""
    return [
        *(_link_line(each, with_sockets=bool(event["sockets"])) for each in event["links"]),
        *map(_socket_line, event["sockets"]),
    ]


def _link_line(each: dict[str, Any], *, with_sockets: bool) -> str:
    if "does" in each:
        return f"{each['link']}: {each['attach_mode']} XDP, {each['does']}"
    if "rules" not in each:
        how = f"by {each['route_rules']:,} rules" if with_sockets else "by the kernel's FIB"
        return f"{each['link']}: {each['attach_mode']} XDP, routed {how}"
    where = "by the rules" if with_sockets else "in the kernel"
    count = each["rules"]
    rules = f"{count:,} rule{'s' * (count != 1)}" if count else "all to the other link"
    pin = f", pinned in {each['pin']}" if each.get("pin") else ""
    return f"{each['link']}: {each['attach_mode']} XDP, forwarded {where}, {rules}{pin}"


def _socket_line(each: dict[str, Any]) -> str:
    return (
        f"{each['link']} queue {each['queue']}: {each['attach_mode']} XDP, {each['bind_mode']}, "
        f"rings of {each['ring_size']}, {each['frames']} frames of {each['frame_size']} bytes, "
        f"{'multi-buffer, ' if each['multi_buffer'] else ''}"
        f"cpu {'any' if each['cpu'] is None else each['cpu']}"
        f"{'' if each['receives'] else ', send only'}"
    )


def _summary_lines(event: dict[str, Any], verb: str, *, split: bool) -> list[str]:
    """Say what became of every packet and every frame; ``split``: also what programs counted."""
    done = f"forwarded {event['forwarded']:,} of {event['rx_packets']:,} packets"
    if verb:
        done = f"received {event['rx_packets']:,}, sent {event['forwarded']:,} packets"
    lines = [
        f"{done} in {event['elapsed']:.1f} s; drops: {drops_text(event['drops'])}; "
        f"in flight {event['in_flight']}; unaccounted {event['unaccounted']}"
    ]
    if "flows" in event:
        counts = ", ".join(f"{name} {count:,}" for name, count in event["flows"].items())
        lines.append(f"through user space {event['slow_path']:,}; flows: {counts}")
    if "verify" in event:
        lines.append(verdict_text(event["verify"]))
    if "answered" in event:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in event["answered"].items())
        lines.append(f"answered: {counts}")
    lines += [
        f"{port['link']} queue {port['queue']}: {_split(port)}"
        for port in event["ports"]
        if split and "redirected_packets" in port
    ]
    places = ", ".join(f"{place} {count}" for place, count in event["frames"].items() if count)
    return [*lines, f"frames: {places}"] if places else lines


def _live_table() -> Any:
    """Return a rich live display where there is a terminal and rich is installed, else None."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    try:
        from rich.live import Live
    except ImportError:
        return None
    return Live(refresh_per_second=4)


def _rich_table(rows: list[list[str]], more: list[str]) -> Any:
    from rich.table import Table

    table = Table(caption="\n".join(more) or None, caption_justify="left")
    table.add_column("link")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    table.add_column("drops")
    for row in rows:
        table.add_row(*row)
    return table
