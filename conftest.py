"""Doctests of the sockets run for real, between ``veth0`` and ``veth1``: the ends of one cable."""

import os
from uuid import uuid4

import pytest

ON_LINKS = {"l2fwd.sockets", "l2fwd.batch", "l2fwd.xsk", "l2fwd.capture"}


@pytest.fixture(autouse=True)
def cable_for_doctests(request):
    """Lay the cable in a namespace of its own, where the doctest runs."""
    doctest = getattr(request.node, "dtest", None)
    if doctest is None or doctest.globs.get("__name__") not in ON_LINKS:
        yield
        return
    if os.geteuid() != 0:
        pytest.skip("needs root: sudo make test")
    with cable():
        yield


def cable():
    """Make a namespace with a veth pair, and move this thread into it; a context manager."""
    from contextlib import ExitStack

    from l2fwd import link

    name = f"l2fwd-doc-{uuid4().hex[:8]}"
    with ExitStack() as undo:
        link.create_netns(name)
        undo.callback(link.remove_netns, name)
        link.create_veth((name, "veth0"), (name, "veth1"), queues=2)
        undo.enter_context(link.in_netns(name))
        for ifname in ("veth0", "veth1"):
            link.disable_ipv6(ifname)
            link.set_up(ifname)
        return undo.pop_all()
