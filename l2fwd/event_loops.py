"""Calls that run an event loop of their own, made from within another one."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def outside_event_loops(
    function: Callable[_Parameters, _Result],
) -> Callable[_Parameters, _Result]:
    """Make a function that may be called in a coroutine, too.

    pyroute2 runs an event loop of its own, which asyncio refuses inside of another one.  A new
    thread has none, and begins in the namespace of its maker.
    """

    @functools.wraps(function)
    def run(*args: _Parameters.args, **settings: _Parameters.kwargs) -> _Result:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return function(*args, **settings)
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(function, *args, **settings).result()

    return run
