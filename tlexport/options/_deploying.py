"""What a caller may ask for when a version goes live, or back."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from tlexport.checks import check, check_name
from tlexport.options._serving import PackageOptions

Server = Annotated[
    str,
    Meta(
        description="the server to load it: HOST:PORT (gRPC), http://HOST:PORT, or with TLS "
        "grpcs:// or https://"
    ),
]
Wait = Annotated[float, Meta(description="longest wait for the server to load it", gt=0)]


class DeployOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which server shall prove and serve a version, and how it is packaged."""

    packaging: PackageOptions = msgspec.field(default_factory=PackageOptions)
    server: Server = "localhost:8001"
    timeout_s: Wait = 120.0
    keep_on_disk: Annotated[
        int,
        Meta(description="versions kept to go back to, that in service among them; 0: all", ge=0),
    ] = 0

    def __post_init__(self) -> None:
        check(self)


class RollbackOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which server shall go back, and with which model."""

    name: Annotated[
        str | None, Meta(description="the model; default: the only one in the repository")
    ] = None
    server: Server = "localhost:8001"
    timeout_s: Wait = 120.0

    def __post_init__(self) -> None:
        check(self)
        if self.name is not None:
            check_name(self.name)
