"""The C references: compiled by cc with the flags setuptools gives the extensions, and loaded."""

import ctypes
import os
import shlex
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2fwd.errors import UnsupportedError


def compile_reference(name: str, folder: str) -> str:
    """Build ``name``.c of this folder as a shared library in ``folder``; return its path."""
    target = f"{folder}/{name}.so"
    flags = shlex.split(sysconfig.get_config_var("CFLAGS") or "")
    compiler = os.environ.get("CC", "cc")
    try:
        subprocess.run(
            [compiler, *flags, "-O3", "-DNDEBUG", "-Wall", "-Wextra", "-fPIC", "-shared",
             str(Path(__file__).with_name(f"{name}.c")), "-o", target],
            check=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise UnsupportedError(f"no {compiler} to compile {name}.c: install gcc") from None
    return target


@contextmanager
def compiled(name: str) -> Iterator[ctypes.CDLL]:
    """Build a reference and load it; its functions have no types yet."""
    with tempfile.TemporaryDirectory() as folder:
        yield ctypes.CDLL(compile_reference(name, folder))


def declare(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> None:
    """Tell the types of a function; ``result`` None is void."""
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)


def address_of(function: Any) -> int:
    """Return where a C function is."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0
