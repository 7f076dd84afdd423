"""A repository in an object store: S3, Google Cloud or Azure.

An object is put whole, a folder is not, and there is no rename. So the work is done in a folder of
this machine that mirrors one model (its large files are but placeholders), and `push` brings over
what changed, in an order that a server which polls may look at any time:

1. where files of an admitted version would come in, a configuration that admits those before alone
2. the files of versions, copied within the store where they only moved; warm-ups and labels
3. the configuration, in one put, and only if nobody else has put one meanwhile
4. what is gone is deleted
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tlexport.errors import MissingDependency, OptionError, RepositoryError, TlexportError
from tlexport.serving import config, pipeline
from tlexport.serving.config import CONFIG, LABELS, WARMUP
from tlexport.serving.lease import Lease, Mark, mark
from tlexport.serving.repository import GOLDEN, NUMBER, ORIGIN, OWN
from tlexport.serving.standing import admit_only, admitted

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    **dict.fromkeys(
        ("az", "abfs", "abfss", "as"), "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
    ),
}
"""By scheme, the variables that say who one is; `as` is how Triton itself writes Azure."""
ENDPOINTS = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    *("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "GOOGLE_BASE_URL",
)
"""Variables with the address of a store that is not the provider's own."""

SMALL = (ORIGIN, OWN, GOLDEN, LABELS, pipeline.GOLDEN, WARMUP, pipeline.GOLDEN_FILES)
"""Files and folders of a version that are read; any other is a placeholder in the mirror."""

Stamp = tuple[int, int, int]


def url_of(place: Path | str) -> str | None:
    """A repository's URL, None for a folder; a Path made of a URL has lost one of its slashes."""
    found = re.match(r"([a-z][a-z0-9]+):/+(.*)", str(place))
    return f"{found[1]}://{found[2]}" if found else None


class Remote:
    """A mirror of some models of a repository; `folder` is where to work."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.shown = url
        self._objects = _library()
        self._store = _opened(self._objects, url)
        self._known: dict[str, Stamp] = {}
        self._seen: dict[str, Mark] = {}
        self.lease = Lease(self._objects, self._store)

    def names(self) -> list[str]:
        """The models there are."""
        with self.translated():
            found = self._objects.list_with_delimiter(self._store)["common_prefixes"]
        return sorted(str(prefix).strip("/").rpartition("/")[2] for prefix in found)

    def pull(self, models: list[str], *, whole: bool = False) -> None:
        """Bring these models over; large files only where `whole`."""
        with self.translated():
            for model in models:
                for batch in self._objects.list(self._store, prefix=f"{model}/"):
                    for entry in batch:
                        self._take(entry, whole)

    def push(self) -> None:
        """Have the store be as the folder is, in an order that is safe to be looked at.

        Raises:
            RepositoryError: the store refuses, or somebody else has changed it meanwhile.
        """
        local = {str(path.relative_to(self.folder)): path for path in self._files()}
        changed = [rel for rel, path in local.items() if self._known.get(rel) != _stamp(path)]
        gone = [rel for rel in self._known if rel not in local]
        with self.translated():
            if changed or gone:
                self.lease.hold()
            models = dict.fromkeys(rel.split("/")[0] for rel in changed)
            for model in sorted(models, key=self._is_ensemble):  # its steps come before it
                self._bring(model, [rel for rel in changed if rel.split("/")[0] == model])
            self._delete(gone)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the store's refusals into ours."""
        try:
            yield
        except (OSError, self._objects.exceptions.BaseError) as error:
            scheme = self.shown.partition(":")[0]
            raise RepositoryError(
                f"to work in the repository {self.shown!r}",
                got=_told(error),
                fix="see that the bucket or container exists and that the credentials in the "
                f"environment ({CREDENTIALS[scheme]}) may list, read, write and delete there",
            ) from error

    def _take(self, entry: dict[str, Any], whole: bool) -> None:
        rel = str(entry["path"])
        path = self.folder / rel
        if path.is_dir() or rel.endswith("/"):  # the marker of a folder, which some tools write
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = rel.split("/")
        in_version = len(parts) > 2 and NUMBER.fullmatch(parts[1])
        if whole or not in_version or parts[2] in SMALL:
            found = self._objects.get(self._store, rel)
            self._seen[rel] = mark(found.meta)
            with path.open("wb") as stream:
                for chunk in found.stream():
                    stream.write(chunk)
        else:
            path.touch()
        self._known[rel] = _stamp(path)

    def _files(self) -> Iterator[Path]:
        for path in sorted(self.folder.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(self.folder).parts)
            if path.is_file() and not hidden:
                yield path

    def _is_ensemble(self, model: str) -> bool:
        described = self.folder / model / CONFIG
        return described.is_file() and config.parse(described).platform == "ensemble"

    def _bring(self, model: str, changed: list[str]) -> None:
        described = f"{model}/{CONFIG}"
        others = [rel for rel in changed if rel != described]
        self._hold_still(model, others)
        versions = [rel for rel in others if NUMBER.fullmatch(rel.split("/")[1])]
        for rel in (*versions, *(rel for rel in others if rel not in versions)):
            self._put(rel)
        if described in changed:
            self.lease.hold()
            self._put_config(described, (self.folder / described).read_bytes())
            self._known[described] = _stamp(self.folder / described)

    def _hold_still(self, model: str, coming: list[str]) -> None:
        """Before files come in that would be admitted: admit what is there by number."""
        described = f"{model}/{CONFIG}"
        numbers = _numbers(coming)
        if not numbers:
            return
        there = self._numbers_of(model)
        if described in self._seen:
            found = config.parse_text(self._get(described).decode())
            if not numbers & set(admitted(found, sorted(there | numbers))):
                return
            admit_only(found, admitted(found, sorted(there - numbers)))
        elif (self.folder / described).is_file():
            found = config.parse(self.folder / described)
            admit_only(found, [])
        else:
            return
        self._put_config(described, config.text(found).encode())
        self._known.pop(described, None)

    def _numbers_of(self, model: str) -> set[int]:
        return _numbers(rel for rel in self._known if rel.startswith(f"{model}/"))

    def _put(self, rel: str) -> None:
        path = self.folder / rel
        stamp = _stamp(path)
        source = next((each for each, known in self._known.items() if known == stamp), None)
        if source is not None and source != rel:
            self._objects.copy(self._store, source, rel, overwrite=True)
        else:
            self._objects.put(self._store, rel, path)
        self._known[rel] = stamp

    def _put_config(self, rel: str, content: bytes) -> None:
        """Put a configuration unless another was put since this one was read.

        Raises:
            RepositoryError: somebody else has.
        """
        try:
            put = self._objects.put(self._store, rel, content, mode=self._seen.get(rel, "create"))
        except (
            self._objects.exceptions.PreconditionError,
            self._objects.exceptions.AlreadyExistsError,
        ) as error:
            raise RepositoryError(
                f"{rel} in {self.shown!r} as it was when this command began",
                got="somebody else has changed it meanwhile",
                fix="run the command again",
            ) from error
        self._seen[rel] = mark(put)

    def _get(self, rel: str) -> bytes:
        return bytes(self._objects.get(self._store, rel).bytes())

    def _delete(self, gone: list[str]) -> None:
        """Delete files: no configuration admits a version of them then, and it goes last itself."""
        described = [rel for rel in gone if rel.split("/")[1:] == [CONFIG]]
        models = dict.fromkeys(rel.split("/")[0] for rel in gone)
        for model in sorted(models, key=self._is_ensemble, reverse=True):
            self._hold_off(model, _numbers(rel for rel in gone if rel.split("/")[0] == model))
        for rel in (*(rel for rel in gone if rel not in described), *described):
            self._objects.delete(self._store, rel)
            self._known.pop(rel)
            self._seen.pop(rel, None)

    def _hold_off(self, model: str, going: set[int]) -> None:
        described = f"{model}/{CONFIG}"
        if described not in self._seen:
            return
        found = config.parse_text(self._get(described).decode())
        there = sorted(self._numbers_of(model) | going)
        left = [number for number in admitted(found, there) if number not in going]
        if left != admitted(found, there):
            admit_only(found, left)
            self._put_config(described, config.text(found).encode())


@contextlib.contextmanager
def mirrored(
    url: str,
    pick: Callable[[list[str]], list[str]],
    *,
    waiting: Callable[[], None] | None = None,
    whole: bool = False,
) -> Iterator[Remote]:
    """A mirror of the models that `pick` takes of those there are, with all files if `whole`.

    With `waiting` it is for writing: others wait, and `waiting` is told where another writes.
    """
    with tempfile.TemporaryDirectory(prefix="tlexport.mirror.") as folder:
        work = Remote(url, Path(folder) / "repository")
        work.folder.mkdir()
        if waiting is None:
            work.pull(pick(work.names()), whole=whole)
            yield work
            return
        with work.translated():
            work.lease.take(waiting)
        try:
            work.pull(pick(work.names()))
            yield work
        finally:
            # what was done is done; a lock that cannot be given back is free when its lease is over
            with contextlib.suppress(TlexportError), work.translated():
                work.lease.release()


def _numbers(paths: Iterable[str]) -> set[int]:
    """The versions that files of a model, written below the repository, belong to."""
    parts = (rel.split("/")[1] for rel in paths)
    return {int(part) for part in parts if NUMBER.fullmatch(part)}


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _library() -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise MissingDependency(
            "the library obstore, which reads and writes object stores",
            got=str(error),
            fix="run `pip install 'tlexport[remote]'`",
        ) from error
    return obstore


def _opened(objects: Any, url: str) -> Any:
    scheme, _, rest = url.partition("://")
    account, _, container = rest.partition("/")
    if scheme not in CREDENTIALS or not (container if scheme == "as" else rest).strip("/"):
        raise OptionError(
            "a folder, or a repository written s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
            "az://CONTAINER/PREFIX or as://ACCOUNT/CONTAINER/PREFIX",
            got=repr(url),
            fix="write it so, without the address of the store: that is taken from the "
            "environment, such as AWS_ENDPOINT_URL",
        )
    plain = any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS)
    more: dict[str, Any] = {"client_options": {"allow_http": True}} if plain else {}
    place = url
    if scheme == "as":
        place, more["config"] = f"az://{container}", {"azure_storage_account_name": account}
    try:
        return objects.store.from_url(place.rstrip("/"), **more)
    except objects.exceptions.BaseError as error:
        raise RepositoryError(
            f"a store at {url!r}",
            got=_told(error),
            fix=f"set its credentials in the environment ({CREDENTIALS[scheme]})",
        ) from error


def _told(error: Exception) -> str:
    """A store's refusal in a line: its code where it gives one, else what the library says."""
    text = str(error).strip()
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(r"status code: (\d+[\w ]*)", text)
    if code is not None:
        return f"{code[1]}" + (f" ({status[1].strip()})" if status else "")
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0]}"
