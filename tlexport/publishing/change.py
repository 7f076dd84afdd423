"""A version is proven beside the old one, then served."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tlexport.errors import ParityError, RepositoryError, ServerError, TlexportError
from tlexport.publishing.gate import Question
from tlexport.reports import Fault, GateCheck
from tlexport.serving import repository, rollout
from tlexport.serving.client import Client, parse
from tlexport.serving.pipeline import whole
from tlexport.serving.rollout import Before, candidate_of
from tlexport.serving.store import Store

GONE_S = 15.0
POLL_S = 0.05
CLEARING_S = 2.0
"""A server that is dead or still loading is not waited for when what is left is cleared away."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """Models that go to version `number` together, in order, an ensemble after its steps.

    `questions` are asked of models by name. `publish` has the repository admit the version of one
    model, and of a step the version beside it that the ensemble still names.
    """

    names: Sequence[str]
    number: int
    questions: Mapping[str, Question]
    publish: Callable[[str, int | None], Before]


class Change:
    """The change of a model, and of what stands around it, to another version on one server.

    `checks`, `load_s`, `change_s` and `notes` tell what was found so far.
    """

    def __init__(self, where: str, model: str, timeout_s: float) -> None:
        self.where = where.removeprefix("triton@")
        self.model = model
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
        for name in reversed(whole(self.model)):
            self._client.unload(candidate_of(name))

    def sweep(self, store: Store) -> None:
        """Remove candidates from the repository, the ensemble before its steps."""
        for name in reversed(whole(self.model)):
            rollout.sweep(store.folder, name)
            store.push()

    def served(self, name: str) -> int | None:
        """The version that a client is answered by which names none; None where there is none."""
        return max(self._ready(name), default=None)

    def align(self, store: Store, names: Sequence[str]) -> int | None:
        """Have the repository say what the server serves; that version, None where it has none.

        They differ after a deploy that was killed, or where something was packaged meanwhile. Of
        models that change together it is the version that the last one serves.

        Raises:
            RepositoryError: the server serves a version that is not in this repository.
        """
        last = self.served(names[-1])
        found = {name: self.served(name) if last is None else last for name in names}
        served = {name: number for name, number in found.items() if number is not None}
        for name, number in served.items():
            self._hold_same(store, name, number)
        for name in reversed(served):
            self._set_back(store, name, served[name])
        return served.get(self.model)

    def run(self, store: Store, move: Move) -> Fault | None:
        """Prove the candidates that lie in the repository, then serve them; why not, if not.

        Whatever goes wrong, the server and the repository serve what they did before.
        """
        before = {name: self.served(name) for name in move.names}
        try:
            store.push()
            self._prove(move)
            self._serve(store, move, before)
        except TlexportError as error:
            return Fault(
                kind=type(error).__name__, expected=error.expected, got=error.got, fix=error.fix
            )
        finally:
            self._clear(store, move.names)
        return None

    def _ready(self, name: str) -> list[int]:
        return [
            int(entry["version"])
            for entry in self._client.models()
            if entry["name"] == name and entry.get("state") == "READY"
        ]

    def _hold_same(self, store: Store, name: str, served: int) -> None:
        folder = store.folder / name
        told = self._client.config(name, str(served)).get("parameters", {})
        known = rollout.digest_told(told, served)
        there = rollout.origin(folder / str(served))
        if served not in repository.versions(folder) or (
            known and there and known != there.artifact_sha256
        ):
            raise RepositoryError(
                f"version {served} of {name!r} in {store.shown!r}, as "
                f"{self._client.address.place} serves it",
                got=f"another version {served}" if there else "no such version",
                fix="name the very repository that the server serves",
            )

    def _set_back(self, store: Store, name: str, served: int) -> None:
        current = rollout.standing(store.folder / name).current
        if current == served:
            return
        note = (
            f"the repository named version {current}, the server serves {served}: "
            f"{current} counts as one that never served"
        )
        self.notes += [note] if note not in self.notes else []
        rollout.serve_again(store.folder, name, served)
        store.push()

    def _prove(self, move: Move) -> None:
        began = time.perf_counter()
        for name in move.names:
            self._client.load(candidate_of(name))
        self.load_s = time.perf_counter() - began
        for name, question in move.questions.items():
            self._ask(candidate_of(name), move.number, question, "candidate")
        for name in reversed(move.names):
            self._client.unload(candidate_of(name))
        self._await_left(*map(candidate_of, move.names))  # else three of a kind would be in memory

    def _serve(self, store: Store, move: Move, served: Mapping[str, int | None]) -> None:
        *steps, last = move.names
        before: list[Before] = []
        try:
            for name in move.names:
                beside = served[last] if name in steps else None
                before.append(move.publish(name, beside))
            store.push()
            began = time.perf_counter()
            for name in move.names:
                self._client.load(name)
                self._hold_number(move.number, name, self._ready(name))
            self.change_s = time.perf_counter() - began
            for name, question in move.questions.items():
                self._ask(name, move.number, question, "in service")
            self._leave(store, move)
            for name in move.names:
                self._hold_number(move.number, name, [self.served(name)])
        except BaseException:
            for each in reversed(before):  # the ensemble first: a load of it reads its steps, too
                rollout.put_back(store.folder, each)
                store.push()
                self._go_back(each.model, served[each.model])
            raise

    def _leave(self, store: Store, move: Move) -> None:
        """Let go of the steps' versions that the ensemble named before, once none asks them."""
        *steps, last = move.names
        changed = [name for name in steps if rollout.leave(store.folder, name, move.number)]
        if changed:
            self._await_left(last)
            store.push()
        for name in changed:
            self._client.load(name)

    def _hold_number(self, number: int, name: str, ready: Sequence[int | None]) -> None:
        if number not in ready:
            raise ServerError(
                f"version {number} of {name!r} in service at {self._client.address.place}",
                got=f"version {', '.join(map(str, ready)) or None}",
                fix="name the very repository that the server serves",
            )

    def _ask(self, model: str, number: int, question: Question, name: str) -> None:
        found = question.ask(self.where, model, str(number), name)
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

    def _go_back(self, name: str, served: int | None) -> None:
        """Have the server take up the old version again, if it let go of it."""
        with contextlib.suppress(TlexportError):
            if served is None:
                self._client.unload(name)
                return
        for _ in range(2):  # it may still be loading the new one, which takes its time
            try:
                self._client.load(name)
                self._await_left(name)
                return
            except ServerError as error:
                why = error
        self.notes.append(
            f"the server did not take up version {served} of {name!r} again: {why.got}"
        )

    def _clear(self, store: Store, names: Sequence[str]) -> None:
        """Remove the candidates from the repository and from the server."""
        self.sweep(store)
        clearing = Client(self._client.address, CLEARING_S)
        try:
            for name in reversed(names):
                clearing.unload(candidate_of(name))
        except ServerError as error:
            self.notes.append(
                f"{candidate_of(name)!r} may still be loaded on the server: the next deploy "
                f"unloads it ({error.got.strip()})"
            )
        finally:
            clearing.close()

    def _await_left(self, *models: str) -> None:
        """Wait until no version of these is on its way out, or long enough."""
        deadline = time.monotonic() + GONE_S
        while time.monotonic() < deadline and any(
            entry.get("state") == "UNLOADING" and entry["name"] in models
            for entry in self._client.models()
        ):
            time.sleep(POLL_S)
