"""Extensions and BPF objects; everything declarative is in pyproject.toml."""

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build import build

ROOT = Path(__file__).parent
DEBUG = os.environ.get("L2FWD_DEBUG") == "1"
APT = "apt-get install clang llvm gcc libbpf-dev libxdp-dev libelf-dev zlib1g-dev linux-libc-dev"
NAMES = (
    "_rings", "_chains", "_classify", "_decide", "_worker", "_jobs", "_answer", "_generator",
    "_verifier", "_socket", "_bpf",
)  # fmt: skip
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
    "binding": True,
}


def require(what: str, found: bool) -> None:
    """Stop with the command that installs ``what``, not with a compiler's wall of text."""
    if not found:
        raise SystemExit(f"l2fwd needs {what} to build: {APT}")


def has_header(name: str) -> bool:
    """Ask the C compiler whether it finds header ``name``."""
    compiler = os.environ.get("CC", "cc")
    with tempfile.NamedTemporaryFile("w", suffix=".c") as source:
        source.write(f"#include <{name}>\n")
        source.flush()
        done = subprocess.run([compiler, "-E", source.name], capture_output=True, check=False)
    return done.returncode == 0


def extensions() -> list[Extension]:
    """Return the cythonized modules, silent under -Wall -Wextra."""
    from Cython.Build import cythonize

    require("a C compiler", shutil.which(os.environ.get("CC", "cc")) is not None)
    require(
        "Python's headers (python3-dev)", has_header(sysconfig.get_path("include") + "/Python.h")
    )
    for header in ("bpf/libbpf.h", "xdp/xsk.h", "linux/if_xdp.h"):
        require(f"the header {header}", has_header(header))
    flags = ["-O1", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-DNDEBUG"]
    libraries = {"_bpf": ["xdp", "bpf"]}
    modules = [
        Extension(
            f"l2fwd.{name}",
            [f"l2fwd/{name}.pyx"],
            define_macros=[("L2FWD_DEBUG", "1" if DEBUG else "0")],
            extra_compile_args=["-Wall", "-Wextra", "-Wno-cast-function-type", *flags],
            include_dirs=["kern"],
            libraries=libraries.get(name, []),
        )
        for name in NAMES
    ]
    # build_dir keeps the generated C out of the wheel.
    return cythonize(modules, build_dir="build/cython", compiler_directives=DIRECTIVES)


class build_bpf(Command):  # noqa: N801 - setuptools names commands in lower case
    """Compile kern/*.bpf.c into l2fwd/bpf_objects/*.o, BTF kept and DWARF dropped."""

    description = "compile the BPF objects with clang"
    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def _objects(self) -> dict[str, str]:
        base = ROOT if self.editable_mode else Path(self.build_lib or "build/lib")
        folder = base / "l2fwd" / "bpf_objects"
        return {
            str(folder / source.name.replace(".bpf.c", ".o")): str(source)
            for source in sorted((ROOT / "kern").glob("*.bpf.c"))
        }

    def run(self) -> None:
        clang, strip = (
            os.environ.get(n.upper().replace("-", "_"), n) for n in ("clang", "llvm-strip")
        )
        require(clang, shutil.which(clang) is not None)
        require(strip, shutil.which(strip) is not None)
        multiarch = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
        for target, source in self._objects().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                [clang, "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror",
                 f"-I/usr/include/{multiarch}", "-c", source, "-o", target],
                check=True,
            )  # fmt: skip
            subprocess.run([strip, "-g", target], check=True)

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "kern").iterdir())]

    def get_outputs(self) -> list[str]:
        return list(self._objects())

    def get_output_mapping(self) -> dict[str, str]:
        return {}


build.sub_commands.append(("build_bpf", None))
setup(ext_modules=extensions(), cmdclass={"build_bpf": build_bpf})
