"""Where a cluster finds a model repository."""

from __future__ import annotations

import re

import msgspec

from tlexport.errors import OptionError

BUCKETS = {"s3": "AWS_ACCESS_KEY_ID", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}
"""Object stores that Triton and KServe write alike: what Triton's credentials are called."""

KNOWN = "s3://BUCKET/PATH, gs://BUCKET/PATH, as://ACCOUNT/CONTAINER/PATH or pvc://CLAIM/PATH"


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """A repository as Triton, a Pod and KServe each call it.

    `triton` is for --model-repository and `kserve` for storageUri. A volume is mounted where
    `claim` is not empty, `folder` below it.
    """

    triton: str
    kserve: str
    claim: str = ""
    folder: str = ""
    credentials: str = ""


def storage(uri: str) -> Storage:
    """Read a URI as `tlexport manifests` takes it.

    Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md
    and KServe's storage initializer.

    Raises:
        OptionError: it is of another kind, or has no bucket or claim.
    """
    kind, _, rest = uri.partition("://")
    parts = [part for part in rest.split("/") if part]
    plain = all(re.fullmatch(r"[A-Za-z0-9_.:-]+", part) for part in parts)
    if plain and ".." not in parts:
        if kind in BUCKETS and parts:
            whole = f"{kind}://{'/'.join(parts)}"
            return Storage(triton=whole, kserve=whole, credentials=BUCKETS[kind])
        if kind == "as" and len(parts) >= 2:
            account, path = parts[0], "/".join(parts[1:])
            return Storage(
                triton=f"as://{account}/{path}",
                kserve=f"https://{account}.blob.core.windows.net/{path}",
                credentials="AZURE_STORAGE_KEY",
            )
        if kind == "pvc" and parts:
            return Storage(
                triton="/models",
                kserve=f"pvc://{'/'.join(parts)}",
                claim=parts[0],
                folder="/".join(parts[1:]),
            )
    raise OptionError(
        f"--storage-uri as {KNOWN}",
        got=repr(uri),
        fix="name the folder that holds the models' folders, where the cluster can read it",
    )
