"""Clients that ask one model without rest, over gRPC and HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype


class Traffic:
    """Threads that ask until the block ends; `failures` are refusals and answers that are wrong.

    `of` are the names of the model, its input and its output.
    `right(version, answer)` judges an answer; `longest_gap_s` is the longest time between two
    answers of one client.
    """

    def __init__(
        self,
        grpc: str,
        http: str,
        array: np.ndarray,
        right: Callable[[int, np.ndarray], bool],
        clients: int = 2,
        of: tuple[str, str, str] = ("insects", "images", "logits"),
    ) -> None:
        self.asked = 0
        self.failures: list[str] = []
        self.versions: set[int] = set()
        self.longest_gap_s = 0.0
        self._array, self._right, self._of = array, right, of
        self._stop, self._lock = threading.Event(), threading.Lock()
        places = [(tritonclient.grpc, grpc), (tritonclient.http, http)]
        self._threads = [
            threading.Thread(target=self._ask_on, args=places[n % 2]) for n in range(clients)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, module, place: str) -> None:
        client = module.InferenceServerClient(place)
        model, name, output = self._of
        entry = module.InferInput(name, self._array.shape, np_to_triton_dtype(self._array.dtype))
        entry.set_data_from_numpy(self._array)
        last = time.monotonic()
        while not self._stop.is_set():
            try:
                result = client.infer(model, [entry])
            except Exception as error:
                with self._lock:
                    self.failures.append(str(error))
                continue
            told = result.get_response()
            version = int(told["model_version"] if isinstance(told, dict) else told.model_version)
            right = self._right(version, result.as_numpy(output))
            now = time.monotonic()
            with self._lock:
                self.asked += 1
                self.versions.add(version)
                self.longest_gap_s = max(self.longest_gap_s, now - last)
                if not right:
                    self.failures.append(f"version {version} answered wrong")
            last = now
            time.sleep(0.002)
        client.close()
