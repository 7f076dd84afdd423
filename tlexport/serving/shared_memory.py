"""Memory shared with a server on the same machine."""

from __future__ import annotations

import abc
import contextlib
import mmap
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tlexport.errors import MissingDependency, ServerError
from tlexport.serving.client import Client

FOLDER = Path("/dev/shm")
BUSY_TRIES = 50
BUSY_WAIT_S = 0.02
DEVICE = 0
"""The first GPU that CUDA_VISIBLE_DEVICES leaves."""


class Region(abc.ABC):
    """A region a server knows by name; what is written goes into `_host`, uint8 [size_bytes]."""

    _host: np.ndarray

    def __init__(self, client: Client, size_bytes: int) -> None:
        self.size_bytes = max(1, size_bytes)
        self.name = f"tlexport-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._client = client

    def write(self, array: np.ndarray, offset: int) -> None:
        """Copy an array into the region."""
        self.view(array.dtype, array.shape, offset)[...] = array

    def write_bytes(self, data: bytes, offset: int) -> None:
        """Copy bytes into the region."""
        self.write(np.frombuffer(data, np.uint8), offset)

    def view(self, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
        """The region's bytes as an array; they change with the next answer."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._host, dtype, count, offset).reshape(shape)

    @abc.abstractmethod
    def send(self) -> None:
        """Bring what was written to where the server reads it."""

    @abc.abstractmethod
    def fetch(self) -> None:
        """Bring what the server wrote to where it is viewed."""

    def close(self) -> None:
        """Have the server let go; directly after an answer it may still hold on for a moment."""
        for left in reversed(range(BUSY_TRIES)):
            try:
                self._let_go()
                return
            except ServerError as error:
                if "in use" not in error.got or not left:
                    raise
                time.sleep(BUSY_WAIT_S)

    @abc.abstractmethod
    def _let_go(self) -> None:
        """Have the server let go, once."""


class SystemRegion(Region):
    """Memory of this machine.

    Its file is removed as soon as the server has it: the memory lives as long as one of both holds
    it, and nothing is left behind, whatever ends this process.

    Raises:
        ServerError: the server does not take it.
    """

    def __init__(self, client: Client, size_bytes: int) -> None:
        super().__init__(client, size_bytes)
        path = FOLDER / self.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, self.size_bytes)
            self._host = np.frombuffer(mmap.mmap(descriptor, self.size_bytes), np.uint8)
            client.register(self.name, f"/{self.name}", self.size_bytes)
        except ServerError as error:
            raise ServerError(
                "a server on this machine that takes shared memory",
                got=error.got,
                fix="use triton@HOST:PORT: shared memory is for a server on the same machine",
            ) from error
        finally:
            os.close(descriptor)
            path.unlink()

    def send(self) -> None:
        """The server reads the very bytes that were written."""

    def fetch(self) -> None:
        """The bytes that are viewed are the server's."""

    def _let_go(self) -> None:
        self._client.unregister(self.name)


class CudaRegion(Region):
    """Memory of the GPU that this process and the server share.

    Raises:
        MissingDependency: CUDA's Python bindings are not installed.
        ServerError: there is no GPU here, or the server does not take its memory.
    """

    def __init__(self, client: Client, size_bytes: int) -> None:
        super().__init__(client, size_bytes)
        try:
            from tritonclient.utils import cuda_shared_memory
        except (ImportError, RuntimeError) as error:  # the client library raises either
            raise MissingDependency(
                "CUDA's Python bindings for triton@cudashm://HOST:PORT",
                got=" ".join(str(error).split()),
                fix="pip install 'tlexport[gpu]', or use triton@HOST:PORT or triton@shm://HOST:PORT",
            ) from error
        self._cuda = cuda_shared_memory
        self._host = np.zeros(self.size_bytes, np.uint8)
        with self._translated():
            self._handle: Any = self._cuda.create_shared_memory_region(
                self.name, self.size_bytes, DEVICE
            )
            try:
                raw = self._cuda.get_raw_handle(self._handle)
                client.register_cuda(self.name, raw, DEVICE, self.size_bytes)
            except BaseException:
                self._free()
                raise

    def send(self) -> None:
        """Copy what was written to the GPU."""
        with self._translated():
            self._cuda.set_shared_memory_region(self._handle, [self._host])

    def fetch(self) -> None:
        """Copy what the server wrote from the GPU."""
        with self._translated():
            self._host = self._cuda.get_contents_as_numpy(self._handle, np.uint8, [self.size_bytes])

    def _let_go(self) -> None:
        self._client.unregister_cuda(self.name)
        if self._handle is not None:
            self._free()

    def _free(self) -> None:
        """Give the memory back: the library keeps it as long as anybody holds the handle."""
        handle, self._handle = self._handle, None
        self._cuda.destroy_shared_memory_region(handle)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (ServerError, self._cuda.CudaSharedMemoryException) as error:
            raise ServerError(
                "an NVIDIA GPU that this process and the server share",
                got=error.got if isinstance(error, ServerError) else _whole(error),
                fix="use triton@HOST:PORT or triton@shm://HOST:PORT",
            ) from error


def _whole(error: BaseException) -> str:
    cause = f": {error.__cause__}" if error.__cause__ else ""
    return " ".join(f"{error}{cause}".split())
