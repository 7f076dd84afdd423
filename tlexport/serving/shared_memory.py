"""Memory shared with a server on the same machine."""

from __future__ import annotations

import mmap
import os
import time
import uuid
from pathlib import Path

import numpy as np

from tlexport.errors import ServerError
from tlexport.serving.client import Client

FOLDER = Path("/dev/shm")
BUSY_TRIES = 50
BUSY_WAIT_S = 0.02


class Region:
    """A region a server knows by name.

    Its file is removed as soon as the server has it: the memory lives as long as one of both holds
    it, and nothing is left behind, whatever ends this process.
    """

    def __init__(self, client: Client, size_bytes: int) -> None:
        self.size_bytes = max(1, size_bytes)
        self.name = f"tlexport-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._client = client
        path = FOLDER / self.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, self.size_bytes)
            self._memory = mmap.mmap(descriptor, self.size_bytes)
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

    def write(self, array: np.ndarray, offset: int) -> None:
        """Copy an array into the region."""
        self.view(array.dtype, array.shape, offset)[...] = array

    def write_bytes(self, data: bytes, offset: int) -> None:
        """Copy bytes into the region."""
        self._memory[offset : offset + len(data)] = data

    def view(self, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
        """The region's bytes as an array; they change with the next answer."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._memory, dtype, count, offset).reshape(shape)

    def close(self) -> None:
        """Have the server let go; directly after an answer it may still hold on for a moment."""
        for left in reversed(range(BUSY_TRIES)):
            try:
                self._client.unregister(self.name)
                return
            except ServerError as error:
                if "in use" not in error.got or not left:
                    raise
                time.sleep(BUSY_WAIT_S)
