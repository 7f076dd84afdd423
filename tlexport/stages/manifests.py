"""Manifests of a server for many machines, from one template."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from tlexport.errors import OptionError, RepositoryError
from tlexport.files import sha256_of_json, write_atomic
from tlexport.options import ManifestOptions, hold_label
from tlexport.progress import Progress, silent
from tlexport.reports import ManifestsReport
from tlexport.serving import docker
from tlexport.serving.lint import lint
from tlexport.serving.manifests import Facts
from tlexport.serving.manifests import manifests as written
from tlexport.serving.manifests.training import Training
from tlexport.serving.needs import Needs, needs
from tlexport.serving.releases import release, releases
from tlexport.serving.repository import fully_described
from tlexport.serving.storage import storage

NOTE = ".tlexport-manifests.json"
"""Digests of what was written, to tell what was changed by hand since."""


def manifests(
    place: Path | str = "model_repository",
    options: ManifestOptions | None = None,
    *,
    progress: Progress = silent,
) -> ManifestsReport:
    """Write what runs the repository at `place` with compose, on Kubernetes and on KServe.

    Cores, memory and GPUs are those that the models' configurations ask for. Each file is written
    whole, and none where one was changed by hand since it was made, unless asked; a run that was
    stopped in between is made good by the next.

    Raises:
        OptionError: no name or storage, an unknown release, or Python models without an image.
        RepositoryError: it holds no model, or one that the server would refuse.
        BundleError: the output folder cannot be written.
    """
    options = options or ManifestOptions()
    folder, output = Path(place), Path(options.output)
    progress("manifests", 0, 1)
    hold_label("name", options.name)
    hold_label("namespace", options.namespace)
    where = storage(options.storage_uri)
    found = needs(folder)
    wanted = release(options.triton) if options.triton else releases()[-1]
    _hold_rules(folder, found, wanted.triton)
    _hold_image(found, options)
    facts = Facts(
        name=options.name,
        namespace=options.namespace,
        triton=wanted.triton,
        image=docker.image(options.image or wanted.triton),
        storage=where,
        needs=found,
        min_replicas=options.min_replicas,
        max_replicas=options.max_replicas,
        queue_us=max(1, round(options.queue_ms * 1000)),
        control=options.control,
        secret=options.secret,
        described=fully_described(folder),
        repository=os.path.relpath(folder.resolve(), output.resolve()),
        training=_training(options),
    )
    texts = written(facts)
    known = _known(output)
    if not options.force:
        _hold_changes(output, texts, known)
    digests = {name: {sha256_of_json(text)} for name, text in texts.items()}
    _note(output, {name: made | known.get(name, set()) for name, made in digests.items()})
    for name, text in texts.items():
        write_atomic(output / name, text.encode())
    _note(output, digests)
    progress("manifests", 1, 1)
    return ManifestsReport(
        output=str(output),
        files=tuple(sorted(texts)),
        models=found.models,
        image=facts.image,
        cores=found.cores,
        memory_mib=found.memory_mib,
        gpus=found.gpus,
        notes=tuple(_notes(options, facts)),
    )


def _training(options: ManifestOptions) -> Training | None:
    """The job that makes the model, where there is an image for it."""
    if not options.training_image:
        return None
    return Training(
        model=options.name,
        image=options.training_image,
        nodes=options.training_nodes,
        devices=options.training_devices,
        cores=options.training_cores,
        memory_mib=options.training_memory_mib,
        gpu=options.training_gpu,
    )


def _hold_rules(folder: Path, found: Needs, triton: str) -> None:
    """Refuse a repository that the server would refuse.

    Raises:
        RepositoryError: the first rule it breaks.
    """
    for each in lint(folder, triton=release(triton), cores=found.cores):
        if each.severity == "error":
            raise RepositoryError(
                f"a repository that Triton {triton} loads: {each.expected}",
                got=f"{each.got} ({each.rule}, {each.path.relative_to(folder)})",
                fix=each.fix,
            )


def _hold_image(found: Needs, options: ManifestOptions) -> None:
    if found.python and not options.image:
        raise OptionError(
            "--image with what the Python models of the repository import",
            got="Python models, and NVIDIA's image, which has nothing but numpy",
            fix="build deploy/Dockerfile, push it where the cluster can pull it, and pass --image",
        )


def _known(output: Path) -> dict[str, set[str]]:
    """Digests of what was made, by file; where the note of them is gone, nothing was."""
    try:
        return msgspec.json.decode((output / NOTE).read_bytes(), type=dict[str, set[str]])
    except (OSError, msgspec.DecodeError):
        return {}


def _note(output: Path, made: dict[str, set[str]]) -> None:
    write_atomic(output / NOTE, msgspec.json.encode(made, order="deterministic"))


def _hold_changes(output: Path, texts: dict[str, str], known: dict[str, set[str]]) -> None:
    """Refuse to overwrite what somebody wrote, or changed.

    Raises:
        OptionError: naming the files.
    """
    changed = [
        name
        for name, text in texts.items()
        if (output / name).exists() and not _is_ours(output / name, text, known.get(name, set()))
    ]
    if changed:
        raise OptionError(
            f"files in {str(output)!r} as they were made",
            got=f"changed by hand: {', '.join(changed)}",
            fix="pass another --output and take your changes over, or --force to lose them",
        )


def _is_ours(path: Path, text: str, made: set[str]) -> bool:
    """Whether a file is as it was made, or would be; what cannot be read is somebody's."""
    try:
        there = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return there == text or sha256_of_json(there) in made


def _notes(options: ManifestOptions, facts: Facts) -> list[str]:
    notes = []
    if not options.secret and not facts.storage.claim:
        notes.append(
            f"without --secret the servers read {facts.storage.triton} with what the cluster "
            f"grants their service account; else a secret must bring {facts.storage.credentials}"
        )
    if options.control == "explicit" and options.max_replicas > 1:
        notes.append(
            "with --control explicit each server must be told of a new version by itself: one "
            "behind an autoscaler is easier with poll"
        )
    if facts.training:
        notes.append(
            f"the training job begins as training-job/ is applied; it needs the claims "
            f"{facts.name}-data, -output and -cache, each ReadWriteMany"
        )
    return notes
