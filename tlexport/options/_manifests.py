"""What a caller may ask for when a model outgrows one machine."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tlexport.checks import check
from tlexport.errors import OptionError

LONGEST = 40
"""Letters of a name: Kubernetes takes 63 of an object's, and suffixes are put behind it."""


class ManifestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What shall run where, and how far it may grow."""

    name: Annotated[str, Meta(description="name of every object: a DNS label")] = ""
    storage_uri: Annotated[
        str,
        Meta(
            description="the model repository as the cluster sees it: s3://BUCKET/PATH, "
            "gs://BUCKET/PATH, as://ACCOUNT/CONTAINER/PATH or pvc://CLAIM/PATH"
        ),
    ] = ""
    output: Annotated[str, Meta(description="folder to write into")] = "deploy"
    namespace: Annotated[str, Meta(description="Kubernetes namespace")] = "default"
    triton: Annotated[
        str | None,
        Meta(description="release YY.MM of the server; default: the newest that reads the files"),
    ] = None
    image: Annotated[
        str, Meta(description="the server's image; default: NVIDIA's of that release")
    ] = ""
    min_replicas: Annotated[int, Meta(description="servers at least", ge=1)] = 1
    max_replicas: Annotated[int, Meta(description="servers at most", ge=1)] = 4
    queue_ms: Annotated[
        float,
        Meta(description="mean wait in Triton's queue above which servers are added", gt=0),
    ] = 10.0
    control: Annotated[
        Literal["poll", "explicit"],
        Meta(
            description="how a server follows the repository: it looks every 30 s, or `tlexport "
            "deploy` tells it"
        ),
    ] = "poll"
    secret: Annotated[
        str,
        Meta(description="secret with the storage's credentials as environment variables"),
    ] = ""
    training_image: Annotated[
        str,
        Meta(
            description="image with torch and tlexport: a training job is written as well; "
            "default: none",
            pattern="^[A-Za-z0-9._/:@-]*$",
        ),
    ] = ""
    training_nodes: Annotated[int, Meta(description="pods of the training job", ge=1)] = 2
    training_devices: Annotated[
        int, Meta(description="processes in each pod of the training job", ge=1)
    ] = 1
    training_cores: Annotated[int, Meta(description="cores of each training process", ge=1)] = 4
    training_memory_mib: Annotated[
        int, Meta(description="memory of each training process", ge=1024)
    ] = 8192
    training_gpu: Annotated[bool, Meta(description="a GPU for each training process")] = False
    force: Annotated[bool, Meta(description="replace files that were changed by hand")] = False

    def __post_init__(self) -> None:
        check(self)
        for flag in ("name", "namespace", "secret"):
            if value := getattr(self, flag):  # a name must be given where it is used
                hold_label(flag, value)
        if self.max_replicas < self.min_replicas:
            raise OptionError(
                "--max-replicas of at least --min-replicas",
                got=f"{self.max_replicas} and {self.min_replicas}",
                fix="raise the one or lower the other",
            )


def hold_label(flag: str, value: str) -> None:
    """Refuse what Kubernetes takes for no name.

    Raises:
        OptionError: telling what it takes, and a name that is near.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", value) or len(value) > LONGEST:
        raise OptionError(
            f"--{flag} as a DNS label: a-z, 0-9 and '-', a letter first, {LONGEST} at most",
            got=repr(value),
            fix=f"pass --{flag} {_suggested(value)}",
        )


def _suggested(value: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-0123456789")[:LONGEST].strip("-")
    return plain or "my-model"
