"""Routing by rules that follow the kernel's tables: ``l3fwd`` through AF_XDP sockets."""

import time
from contextlib import ExitStack
from typing import Final

from l2fwd.config import ForwardConfig
from l2fwd.datapath import Event, Notify
from l2fwd.datapath.following import Following
from l2fwd.datapath.ruled import RuledPath
from l2fwd.errors import ConfigError
from l2fwd.fib import Routing, Snapshot, route_rules
from l2fwd.rtnetlink import has_policies
from l2fwd.rules import RuleTable

_MIN_PAUSE_SECONDS: Final = 0.05  # between two changes of the rules
_PAUSE_RATIO: Final = 3.0  # and as many times as long as the last one took

_NO_SUCH_LIMIT: Final = "--data-path redirect asks the kernel and has no such limit"


class RoutedPath(RuledPath):
    """Routes between the links of ``config`` by the kernel's tables ``local`` and ``main``.

    Parameters
    ----------
    config : ForwardConfig
        With ``routed``.
    notify : callable
        Gets one dict per event, as from ``RuledPath``.

    Raises
    ------
    ConfigError
        As ``RuledPath``; or if the host does not forward.
    """

    def __init__(self, config: ForwardConfig, notify: Notify) -> None:
        super().__init__(config, notify)
        self._following = Following(config, notify)
        self._snapshot = Snapshot({}, {}, {})
        self._routing = Routing(RuleTable(), frozenset())
        self._not_before = 0.0
        self._is_left_to_the_host = False

    def _prepare(self, undo: ExitStack) -> None:
        routes = self._following.routes
        routes.open()
        undo.callback(routes.close)
        if has_policies():
            self._warn(["routing rules (ip rule) beside the default ones are not followed"])
        self._snapshot = routes.snapshot()
        self._routing = route_rules(self._snapshot)
        self._book.table = self._routing.rules
        try:
            super()._prepare(undo)
        except ConfigError as error:
            raise ConfigError(f"{error}; {_NO_SUCH_LIMIT}") from None

    def _describe(self) -> Event:
        return {"route_rules": len(self._book.table)}

    def watch(self) -> None:
        """Notice what the data path must, and what has changed in the kernel's tables."""
        super().watch()
        now = time.monotonic()
        if now >= self._not_before and self._following.routes.have_changed():
            self._follow()
            ended = time.monotonic()
            self._not_before = ended + max(_MIN_PAUSE_SECONDS, _PAUSE_RATIO * (ended - now))
        self._following.tend(self._routing.unresolved)

    def _follow(self) -> None:
        """Put the rules in force that the tables make now, if they are others."""
        before, self._snapshot = self._snapshot, self._following.routes.snapshot()
        if self._snapshot == before:
            return  # as when a neighbour is heard of, or not for a while
        rules, self._routing = self._routing.rules, route_rules(self._snapshot)
        if self._routing.rules == rules and not self._is_left_to_the_host:
            return
        try:
            self._replace(self._routing.rules)
        except ConfigError as error:
            if not self._is_left_to_the_host:
                self._warn([f"the host routes all packets: {error}; {_NO_SUCH_LIMIT}"])
            self._is_left_to_the_host = True
        else:
            self._is_left_to_the_host = False

    def _replace(self, rules: RuleTable) -> None:
        try:
            self.apply(rules)
        except ConfigError:
            # Old routes are worse than none: the host knows the new ones.  And without the old
            # ones beside them they may fit.
            self.apply(RuleTable())
            self.apply(rules)
