"""A version is proven beside the old one, then served."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from tlexport.errors import ParityError, RepositoryError, ServerError, TlexportError
from tlexport.reports import Fault, GateCheck
from tlexport.serving import repository, rollout
from tlexport.serving.client import Client, parse
from tlexport.serving.rollout import Before, candidate_of
from tlexport.serving.store import Store
from tlexport.stages._gate import Question, ask

GONE_S = 15.0
POLL_S = 0.05
CLEARING_S = 2.0
"""A server that is dead or still loading is not waited for when what is left is cleared away."""


class Change:
    """One model's change to another version, on one server and in one repository.

    `checks`, `load_s`, `change_s` and `notes` tell what was found so far.
    """

    def __init__(self, where: str, model: str, timeout_s: float) -> None:
        self.where = where.removeprefix("triton@")
        self.model = model
        self.candidate = candidate_of(model)
        self.checks: list[GateCheck] = []
        self.notes: list[str] = []
        self.load_s: float | None = None
        self.change_s: float | None = None
        self._timeout_s = timeout_s
        self._client = Client(parse(self.where), timeout_s)

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()

    def hold_server(self) -> None:
        """Refuse a server that cannot be told to load; unload what a killed deploy left there.

        Raises:
            ServerError: nobody answers, or it follows its repository by itself.
        """
        self._client.server()
        self._client.unload(self.candidate)

    def served(self) -> int | None:
        """The version that a client is answered by which names none; None where there is none."""
        ready = [
            int(entry["version"])
            for entry in self._client.models()
            if entry["name"] == self.model and entry.get("state") == "READY"
        ]
        return max(ready, default=None)

    def align(self, store: Store) -> int | None:
        """Have the repository say what the server serves; that version, None where it has none.

        They differ after a deploy that was killed, or where something was packaged meanwhile.

        Raises:
            RepositoryError: the server serves a version that is not in this repository.
        """
        folder, served = store.folder / self.model, self.served()
        if served is None:
            return None
        told = self._client.config(self.model, str(served)).get("parameters", {})
        known = rollout.digest_told(told, served)
        there = rollout.origin(folder / str(served))
        if served not in repository.versions(folder) or (
            known and there and known != there.artifact_sha256
        ):
            raise RepositoryError(
                f"version {served} of {self.model!r} in {store.shown!r}, as "
                f"{self._client.address.place} serves it",
                got=f"another version {served}" if there else "no such version",
                fix="name the very repository that the server serves",
            )
        current = rollout.standing(folder).current
        if current != served:
            self.notes.append(
                f"the repository named version {current}, the server serves {served}: "
                f"{current} counts as one that never served"
            )
            rollout.serve_again(store.folder, self.model, served)
            store.push()
        return served

    def run(
        self, store: Store, number: int, question: Question, publish: Callable[[], Before]
    ) -> Fault | None:
        """Prove the candidate that lies in the repository, then serve it; why not, if not.

        Whatever goes wrong, the server and the repository serve what they did before.
        """
        before = self.served()
        try:
            store.push()
            self._prove(number, question)
            self._serve(store, (number, before), question, publish)
        except TlexportError as error:
            return Fault(
                kind=type(error).__name__, expected=error.expected, got=error.got, fix=error.fix
            )
        finally:
            self._clear(store)
        return None

    def _prove(self, number: int, question: Question) -> None:
        began = time.perf_counter()
        self._client.load(self.candidate)
        self.load_s = time.perf_counter() - began
        self._ask(self.candidate, number, question, "candidate")
        self._client.unload(self.candidate)
        deadline = time.monotonic() + GONE_S  # else three of a kind would be in memory
        while self._is_leaving(self.candidate) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _serve(
        self,
        store: Store,
        numbers: tuple[int, int | None],
        question: Question,
        publish: Callable[[], Before],
    ) -> None:
        number, served = numbers
        before = publish()
        try:
            store.push()
            began = time.perf_counter()
            self._client.load(self.model)
            self.change_s = time.perf_counter() - began
            if self.served() != number:
                raise ServerError(
                    f"version {number} of {self.model!r} in service at "
                    f"{self._client.address.place}",
                    got=f"version {self.served()}",
                    fix="name the very repository that the server serves",
                )
            self._ask(self.model, number, question, "in service")
        except BaseException:
            rollout.put_back(store.folder, before)
            store.push()
            self._go_back(served)
            raise

    def _ask(self, model: str, number: int, question: Question, name: str) -> None:
        found = ask(self.where, model, str(number), question, name)
        self.checks += found
        failed = [check for check in found if not check.passed]
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise ParityError(
                f"the server to answer the golden samples of {self.model!r} as the original does",
                got=f"batch {failed[0].batch}: {failed[0].reason}{more}",
                fix="find out what differs with `tlexport verify BUNDLE --candidate "
                f"triton@{self.where}` on a server of its own",
            )

    def _go_back(self, served: int | None) -> None:
        """Have the server take up the old version again, if it let go of it."""
        with contextlib.suppress(TlexportError):
            if served is None:
                self._client.unload(self.model)
                return
        for _ in range(2):  # it may still be loading the new one, which takes its time
            try:
                self._client.load(self.model)
                return
            except ServerError as error:
                why = error
        self.notes.append(f"the server did not take up version {served} again: {why.got}")

    def _clear(self, store: Store) -> None:
        """Remove the candidate from the repository and from the server."""
        rollout.sweep(store.folder, self.model)
        store.push()
        clearing = Client(self._client.address, CLEARING_S)
        try:
            clearing.unload(self.candidate)
        except ServerError as error:
            self.notes.append(
                f"{self.candidate!r} may still be loaded on the server: the next deploy unloads "
                f"it ({error.got.strip()})"
            )
        finally:
            clearing.close()

    def _is_leaving(self, model: str) -> bool:
        mine = [entry for entry in self._client.models() if entry["name"] == model]
        return any(entry.get("state") == "UNLOADING" for entry in mine)
