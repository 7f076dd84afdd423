"""Measures what an ONNX Runtime reads: a row of the table.

    python -m tlexport.serving.measure_release YY.MM SERVER_VERSION ONNXRUNTIME_VERSION

installs that onnxruntime into a folder that is removed again, has it load tiny models of rising
versions in a process of its own, and writes the row for triton_releases.csv to standard output, and
the rows of operators that microsoft_operators.csv has not yet.
Wheels are there for Python 3.11 from 1.15 on; those before 1.19 get a numpy below 2 beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from tlexport.errors import MissingDependency, OptionError, TlexportError
from tlexport.serving.releases import OTHERS, microsoft_operators

PROBE = Path(__file__).with_name("limits_of_onnxruntime.py")
FIRST_WITH_NUMPY_2 = (1, 19)


class Limits(msgspec.Struct, frozen=True):
    """The newest versions that an onnxruntime takes."""

    onnxruntime: str
    ir_version: int
    opsets: dict[str, int]
    operators: tuple[str, ...] = ()


def measure(folder: Path | None = None) -> Limits:
    """Ask the onnxruntime in `folder`, or this environment's.

    Raises:
        MissingDependency: it does not load here.
    """
    places = [str(folder)] if folder else []
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    ran = subprocess.run(
        [sys.executable, str(PROBE), *microsoft_operators()],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    if ran.returncode != 0:
        raise MissingDependency(
            "an onnxruntime that loads in this environment",
            got=(ran.stderr.strip().splitlines() or ["nothing"])[-1],
            fix="measure it with the Python and numpy that it was built for",
        )
    return msgspec.json.decode(ran.stdout, type=Limits)


def install(version: str, folder: Path) -> None:
    """Put onnxruntime's wheel into a folder, with an older numpy where it needs one.

    Raises:
        MissingDependency: there is no such wheel for this Python, or no index to be asked.
    """
    try:
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except ValueError as error:
        raise OptionError(
            "a version of onnxruntime such as 1.20.1", got=repr(version), fix="write one"
        ) from error
    wanted = [f"onnxruntime=={version}"]
    wanted += ["numpy<2"] if numbers < FIRST_WITH_NUMPY_2 else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary"]
    ran = subprocess.run(
        [*command, ":all:", "--target", str(folder), *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        raise MissingDependency(
            f"a wheel of {' and '.join(wanted)} for Python {sys.version_info[0]}."
            f"{sys.version_info[1]}",
            got=(ran.stderr.strip().splitlines() or ["nothing"])[-1],
            fix="use a Python of that time, or check pip's access to its index",
        )


def row(triton: str, server: str, limits: Limits) -> str:
    """The table's row.

    Raises:
        OptionError: a domain that is the same in every release so far is another in this one.
    """
    opsets = limits.opsets
    known = OTHERS | {"com.ms.internal.nhwc": opsets["ai.onnx"]}
    for domain, newest in opsets.items():
        if newest != known.get(domain, newest):
            raise OptionError(
                f"{domain} up to version {known[domain]}, as in every release so far",
                got=str(newest),
                fix="make it a column of triton_releases.csv, as ai.onnx.ml is",
            )
    cells = (opsets["ai.onnx"], limits.ir_version, opsets["ai.onnx.ml"])
    return ",".join([triton, server, limits.onnxruntime, *map(str, cells)])


def main(arguments: list[str]) -> int:
    """Measure what the arguments say; the exit code."""
    if len(arguments) != 3:
        sys.stderr.write(__doc__ or "")
        return 2
    triton, server, version = arguments
    try:
        with tempfile.TemporaryDirectory() as folder:
            install(version, Path(folder))
            limits = measure(Path(folder))
            sys.stdout.write(row(triton, server, limits) + "\n")
            for operator in sorted(set(limits.operators) - set(microsoft_operators())):
                sys.stdout.write(f"{operator},{limits.onnxruntime}\n")
    except TlexportError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
