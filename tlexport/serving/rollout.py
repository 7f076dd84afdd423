"""A candidate beside a model, and which version serves.

<repository>/<name>.tlexport-candidate/<version>/...   a version that the server is asked first,
                                                       under another name than clients use
<repository>/<name>/<version>/...                      moved here when it has answered
<repository>/<name>/config.pbtxt                       then admits it and no newer one

Models that move together are changed one after the other, an ensemble after its steps: these admit
the version that it names beside the next one until it has moved.

The lock of the repository is held by whoever calls these.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from tlexport.bundle import read_tensors
from tlexport.errors import RepositoryError
from tlexport.files import sync_folder, write_atomic
from tlexport.serving import config, repository, staging
from tlexport.serving.config import CONFIG, LABELS, WARMUP
from tlexport.serving.repository import GOLDEN, ORIGIN, OWN, NewVersion, Origin
from tlexport.serving.standing import Standing, admit_only, admitted, standing_of, tell

CANDIDATE = ".tlexport-candidate"


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it was: its configuration (None where it had none), and whether it was there."""

    model: str
    text: str | None
    there: bool
    added: int | None = None


def candidate_of(model: str) -> str:
    """The name under which a candidate of a model is loaded."""
    return f"{model}{CANDIDATE}"


def standing(model: Path) -> Standing:
    """Which versions of a model folder have served, and which does."""
    numbers = repository.versions(model)
    place = model / CONFIG
    found = config.parse(place) if place.is_file() else pb.ModelConfig()
    return standing_of(found, numbers)


def origin(version: Path) -> Origin | None:
    """Where a version comes from; None for one that this tlexport did not write.

    Raises:
        RepositoryError: what tells it is there and cannot be read.
    """
    try:
        return msgspec.json.decode((version / ORIGIN).read_bytes(), type=Origin)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
    except OSError as error:
        raise RepositoryError(
            f"to read where {str(version)!r} comes from",
            got=f"{error.strerror}: {ORIGIN}",
            fix="make the repository readable for you",
        ) from error


def digest_told(parameters: Mapping[str, Any], version: int) -> str | None:
    """The digest of a version's artifact that a server's configuration tells, if any."""
    text = parameters.get(config.DIGESTS_PARAMETER, {}).get("string_value", "")
    try:
        return msgspec.json.decode(text, type=dict[str, str]).get(str(version))
    except msgspec.DecodeError:
        return None


def labels_of(version: Path) -> int:
    """How many labels a version tells; 0 where it has none of its own."""
    path = version / LABELS
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def golden(version: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and answers that were kept with a version; both empty where none were."""
    if not (version / GOLDEN).is_file():
        return {}, {}
    found = read_tensors(version / GOLDEN)
    inputs = {n.removeprefix("input:"): a for n, a in found.items() if n.startswith("input:")}
    outputs = {n.removeprefix("output:"): a for n, a in found.items() if n.startswith("output:")}
    return inputs, outputs


def sweep(place: Path, model: str) -> None:
    """Remove a candidate, and versions that a killed deploy moved in and never had served."""
    shutil.rmtree(place / candidate_of(model), ignore_errors=True)
    folder = place / model
    if not (folder / CONFIG).is_file():
        return
    known = config.digests_of(config.parse(folder / CONFIG))
    for number in repository.versions(folder):
        version = folder / str(number)
        if str(number) not in known and (version / ORIGIN).is_file() and (version / OWN).is_file():
            _remove(version, folder)


def stage_new(place: Path, together: Sequence[NewVersion]) -> int:
    """Write the next version of each model as a candidate; the number of all of them."""
    number = max(repository.next_number(place / new.settings.name) for new in together)
    for new in together:
        _stage(
            place,
            new.settings.name,
            number,
            functools.partial(repository.fill_version, new=new, number=number),
        )
    return number


def stage_again(place: Path, models: Sequence[str], number: int) -> None:
    """Make candidates of versions that are there: the same files under other names."""
    for model in models:
        _stage(place, model, number, functools.partial(_linked, place / model / str(number)))


def publish(place: Path, model: str, number: int, beside: int | None = None) -> Before:
    """Move the candidate into its model and admit it, and `beside` as well; how it was before."""
    folder, source = place / model, place / candidate_of(model) / str(number)
    if not folder.is_dir():
        with _folder_for(place, model) as made:
            source.rename(made / str(number))
            _describe(made, number, Standing().then(number), {})
        return Before(model=model, text=None, there=False, added=number)
    before = _before(place, model, added=number)
    stand, digests = standing(folder), _digests(folder)
    try:
        _hold_still(folder)
        source.rename(folder / str(number))
        sync_folder(folder)
        _describe(folder, number, stand.then(number), digests, beside)
    except BaseException:
        put_back(place, before)
        raise
    return before


def serve_again(place: Path, model: str, number: int, beside: int | None = None) -> Before:
    """Admit a version that is there, and none that is newer but `beside`; how it was before."""
    before, folder = _before(place, model), place / model
    _describe(folder, number, standing(folder).then(number), _digests(folder), beside)
    return before


def leave(place: Path, model: str, number: int) -> bool:
    """Admit no more what was beside a version that serves now; whether that changes anything."""
    before = serve_again(place, model, number)
    return (place / model / CONFIG).read_text(encoding="utf-8") != before.text


def put_back(place: Path, before: Before) -> None:
    """Have a model serve what it did; the number of a version that failed is not given again."""
    folder = place / before.model
    if not before.there:
        _remove(folder, staging.stage_place(place))
        return
    if before.text is None:
        (folder / CONFIG).unlink(missing_ok=True)
    else:
        last = standing(folder).last
        found = config.parse_text(before.text)
        numbers = [n for n in repository.versions(folder) if n != before.added]
        stand = standing_of(found, numbers)
        admit_only(found, admitted(found, numbers))
        tell(found, msgspec.structs.replace(stand, last=last))
        write_atomic(folder / CONFIG, config.text(found).encode())
        repository.drop_unnamed(folder, [found])
    if before.added is not None:
        _remove(folder / str(before.added), folder)


def prune(place: Path, model: str, keep: int) -> tuple[int, ...]:
    """Remove versions of ours but those admitted and the last `keep` that served; which went."""
    folder = place / model
    numbers = repository.versions(folder)
    found = config.parse(folder / CONFIG)
    kept = {*admitted(found, numbers), *standing_of(found, numbers).served[-keep:]}
    old = [n for n in numbers if n not in kept and (folder / str(n) / ORIGIN).is_file()]
    for number in old:
        _remove(folder / str(number), folder)
    return tuple(old)


def _before(place: Path, model: str, added: int | None = None) -> Before:
    path = place / model / CONFIG
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    return Before(model=model, text=text, there=True, added=added)


def _stage(place: Path, model: str, number: int, fill: Callable[[Path], None]) -> None:
    name = candidate_of(model)
    with _folder_for(place, name) as folder:
        version = folder / str(number)
        version.mkdir()
        fill(version)
        own = _own(version, place / model / CONFIG)
        own.name = name
        admit_only(own, [number])
        tell(own, Standing())
        for step in own.ensemble_scheduling.step:
            step.model_name = candidate_of(step.model_name)
        for block in own.output:
            _keep_labels(block, version, place / model)
        _write_warmups(folder, version, own, place / model)
        write_atomic(folder / CONFIG, config.text(own).encode())


@contextlib.contextmanager
def _folder_for(place: Path, name: str) -> Iterator[Path]:
    """A folder to fill that becomes a model at one stroke, where the disk allows it."""
    beside = staging.stage_place(place)
    if beside is not None:
        with staging.aside(beside) as folder:
            yield folder
            folder.rename(place / name)
            sync_folder(place)
        return
    (place / name).mkdir()
    try:
        yield place / name
    except BaseException:
        shutil.rmtree(place / name, ignore_errors=True)
        raise


def _keep_labels(block: pb.ModelOutput, version: Path, model: Path) -> None:
    """Give a candidate the label file that its configuration names, if that is the model's."""
    named = block.label_filename
    if named and not (version.parent / named).is_file():
        (version.parent / named).write_bytes((model / named).read_bytes())


def _own(version: Path, fallback: Path) -> pb.ModelConfig:
    """A version's own configuration; the model's where it was written without one."""
    return config.parse(version / OWN if (version / OWN).is_file() else fallback)


def _write_warmups(model: Path, version: Path, own: pb.ModelConfig, other: Path) -> None:
    """The warm-up files that a version's configuration names: of its own, or `other`'s.

    Raises:
        RepositoryError: there is one neither here nor there.
    """
    inputs, _ = golden(version)
    made = {config.warmup_name(a[:1]): config.raw_bytes(a[:1]) for a in inputs.values()}
    for file in repository.warmup_files(own):
        if (model / WARMUP / file).is_file():
            continue
        for place in (version, other):
            if file not in made and (place / WARMUP / file).is_file():
                made[file] = (place / WARMUP / file).read_bytes()
        if file not in made:
            raise RepositoryError(
                f"the warm-up file {file} of version {version.name} of {other.name!r}",
                got="no such file, neither with the version nor with the model",
                fix="deploy or package the bundle of that version again",
            )
        write_atomic(model / WARMUP / file, made[file])


def _hold_still(folder: Path) -> None:
    """Admit by number what is admitted now: what comes in next is no one's yet."""
    path = folder / CONFIG
    if path.is_file():
        found = config.parse(path)
        if found.version_policy.WhichOneof("policy_choice") != "specific":
            numbers = repository.versions(folder)
            stand = standing_of(found, numbers)
            admit_only(found, admitted(found, numbers))
            tell(found, stand)
            write_atomic(path, config.text(found).encode())


def _describe(
    folder: Path,
    number: int,
    stand: Standing,
    digests: dict[str, str],
    beside: int | None = None,
) -> None:
    """Write what the version's configuration names, then that configuration."""
    version, path = folder / str(number), folder / CONFIG
    own = _own(version, path)
    latest = own.version_policy.latest.num_versions if own.HasField("version_policy") else 1
    there = [each for each in stand.served if (folder / str(each)).is_dir()]
    more = {beside} if beside is not None and (folder / str(beside)).is_dir() else set()
    admit_only(own, sorted({*there[-max(1, latest) :], *more}))
    tell(own, stand)
    found = origin(version)
    told = digests | ({str(number): found.artifact_sha256} if found else {})
    own.parameters[config.DIGESTS_PARAMETER].string_value = msgspec.json.encode(
        told, order="deterministic"
    ).decode()
    before = [config.parse(path)] if path.is_file() else []
    _write_warmups(folder, version, own, folder)
    write_atomic(path, config.text(own).encode())
    repository.drop_unnamed(folder, [own, *before])


def _digests(folder: Path) -> dict[str, str]:
    """Version -> sha256 of its artifact, of those there are."""
    found = {n: origin(folder / str(n)) for n in repository.versions(folder)}
    return {str(n): each.artifact_sha256 for n, each in found.items() if each is not None}


def _linked(source: Path, folder: Path) -> None:
    """The same files, by hard links where the disk has them."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copyfile(one, other)

    shutil.copytree(source, folder, copy_function=link, dirs_exist_ok=True)


def _remove(folder: Path, aside: Path | None) -> None:
    """Take a folder away at one stroke, where there is a place aside, then delete it."""
    if aside is None or not folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        return
    with staging.aside(aside) as heap:
        folder.rename(heap / folder.name)
