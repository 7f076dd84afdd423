"""One connection to a Triton server, gRPC or HTTP alike."""

from __future__ import annotations

import http.client
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tlexport.errors import OptionError, ServerError
from tlexport.serving.refusals import fix_of

GONE = re.compile(r"failed to connect|Connection refused|unreachable|not resolve")
LATE = re.compile(r"DEADLINE_EXCEEDED|Deadline Exceeded|timed out", re.IGNORECASE)
NO_MODEL = re.compile(r"unknown model|is not found|is not ready|has no available versions")
CONTROL = re.compile(r"explicit model load / unload is not allowed")
UNSEEN = re.compile(r"failed to poll from model repository")
DIED = re.compile(r"Stub process '[^']*' is not healthy")
MAX_MESSAGE = tritonclient.grpc.MAX_GRPC_MESSAGE_SIZE
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables that gRPC takes a proxy from, for loopback addresses as well."""
CERTIFICATE = re.compile(
    r"certificate|\bssl\b|\btls\b|handshake|hostname verification", re.IGNORECASE
)
FORBIDDEN = re.compile(r"UNAUTHENTICATED|PERMISSION_DENIED|^40[13]$")
PROTOCOLS = {"": "grpc", **{name: name for name in ("grpc", "http", "shm", "cudashm")}}
OVER_TLS = {"grpcs": "grpc", "https": "http"}
LAST_PORT = 65535
TOKEN = "TLEXPORT_TOKEN"
AUTHORITIES = "SSL_CERT_FILE"
"""Variables: what a server behind a gateway wants to see, and who vouches for it."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server answers: `protocol` is grpc, http, or, with memory shared, shm or cudashm."""

    protocol: str
    place: str
    tls: bool = False


def parse(where: str) -> Address:
    """Read HOST:PORT, with http://, shm:// or cudashm:// before it, or with TLS grpcs://, https://.

    Raises:
        OptionError: it is written otherwise.
    """
    scheme, _, place = where.rpartition("://")
    place = place.rstrip("/")
    host, _, port = place.rpartition(":")
    known = {**PROTOCOLS, **OVER_TLS}
    if scheme not in known or not host or not port.isdigit() or int(port) > LAST_PORT:
        raise OptionError(
            "a server written HOST:PORT (gRPC), http://HOST:PORT, shm://HOST:PORT, "
            "cudashm://HOST:PORT, or with TLS grpcs://HOST:PORT or https://HOST:PORT",
            got=repr(where),
            fix="write for example triton@localhost:8001 or triton@http://localhost:8000",
        )
    return Address(protocol=known[scheme], place=place, tls=scheme in OVER_TLS)


class Bearer:
    """A plug-in of the client library: shows a token with every request, as RFC 6750 has it."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def __call__(self, request: Any) -> None:
        """Add it to the headers."""
        request.headers["authorization"] = self._header


def _authorities() -> str | None:
    """The file of who vouches for servers, where the system's own is not meant.

    Raises:
        OptionError: it cannot be read.
    """
    file = os.environ.get(AUTHORITIES) or None
    if file is not None and not os.access(file, os.R_OK):
        raise OptionError(
            f"{AUTHORITIES} with a file of certificates",
            got=f"{file!r}, which cannot be read",
            fix="name the certificate of the server's authority, in PEM, or unset it",
        )
    return file


def _over_grpc(address: Address) -> dict[str, Any]:
    """A gRPC channel: no limit to a message, no proxy to a server on this machine."""
    channel = [(f"grpc.max_{way}_message_length", MAX_MESSAGE) for way in ("send", "receive")]
    channel.append(("grpc.enable_http_proxy", int(not _is_here(address.place))))
    more: dict[str, Any] = {"channel_args": channel}
    if address.tls:
        more |= {"ssl": True, "root_certificates": _authorities()}
    return more


def _over_http(address: Address, timeout_s: float) -> dict[str, Any]:
    more: dict[str, Any] = {"connection_timeout": timeout_s, "network_timeout": timeout_s}
    if address.tls:
        authorities = _authorities()
        more |= {"ssl": True, "ssl_options": {"ca_certs": authorities} if authorities else {}}
    return more


def _is_here(place: str) -> bool:
    """Whether HOST:PORT is an address of this machine; asked only where a proxy is set."""
    if not any(os.environ.get(name) for name in PROXIES):
        return False
    host = place.rpartition(":")[0].strip("[]")
    try:
        family = socket.getaddrinfo(host, None)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except (OSError, UnicodeError):
        return False
    return True


class Client:
    """A connection for one thread; every answer about the server is plain JSON data."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._http = address.protocol == "http"
        self._module = tritonclient.http if self._http else tritonclient.grpc
        more = _over_http(address, timeout_s) if self._http else _over_grpc(address)
        self._client = self._module.InferenceServerClient(address.place, **more)
        if address.tls and (token := os.environ.get(TOKEN)):  # in clear it is anybody's
            self._client.register_plugin(Bearer(token))

    def server(self) -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return self._told("get_server_metadata")

    def models(self) -> list[dict[str, Any]]:
        """Models of the repository with version and state."""
        index: Any = self._told("get_model_repository_index")
        return list(index if self._http else index.get("models", []))

    def config(self, model: str, version: str = "") -> dict[str, Any]:
        """The configuration the server uses."""
        found = self._told("get_model_config", model, version)
        return dict(found if self._http else found["config"])

    def metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """Inputs, outputs and versions of a model."""
        return self._told("get_model_metadata", model, version)

    def statistics(self, model: str, version: str) -> dict[str, Any]:
        """Totals of a model's version since it was loaded."""
        found = self._told("get_inference_statistics", model, version)
        return dict(found["model_stats"][0])

    def input(self, name: str, shape: Sequence[int], datatype: str) -> Any:
        """An input to be filled."""
        return self._module.InferInput(name, list(shape), datatype)

    def output(self, name: str) -> Any:
        """An output to be asked for."""
        return self._module.InferRequestedOutput(name)

    def infer(self, model: str, version: str, inputs: list[Any], outputs: list[Any]) -> Any:
        """Ask once.

        Raises:
            ServerError: a refusal in the server's words, or no answer.
        """
        waits = {} if self._http else {"client_timeout": self.timeout_s}
        with self.translated():
            return self._client.infer(
                model, inputs, model_version=version, outputs=outputs, **waits
            )

    def load(self, model: str) -> None:
        """Have the server load a model, or take up what changed of it, and wait until it has.

        Raises:
            ServerError: it refuses, with its reason, or is not ready in time.
        """
        waits = {} if self._http else {"client_timeout": self.timeout_s}
        try:
            with self.translated():
                self._client.load_model(model, **waits)
        except ServerError as error:
            raise self._not_loaded(model, error) from error

    def unload(self, model: str) -> None:
        """Have the server let go of a model; one that it does not have is no error."""
        waits = {} if self._http else {"client_timeout": self.timeout_s}
        with self.translated():
            self._client.unload_model(model, **waits)

    def register(self, region: str, key: str, size_bytes: int) -> None:
        """Tell the server of a shared memory region."""
        with self.translated():
            self._client.register_system_shared_memory(region, key, size_bytes)

    def unregister(self, region: str) -> None:
        """Have the server let go of a shared memory region."""
        with self.translated():
            self._client.unregister_system_shared_memory(region)

    def register_cuda(self, region: str, handle: bytes, device: int, size_bytes: int) -> None:
        """Tell the server of a region on a GPU, by CUDA's handle for other processes."""
        with self.translated():
            self._client.register_cuda_shared_memory(region, handle, device, size_bytes)

    def unregister_cuda(self, region: str) -> None:
        """Have the server let go of a region on a GPU."""
        with self.translated():
            self._client.unregister_cuda_shared_memory(region)

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the client library's errors into ours."""
        try:
            yield
        except InferenceServerException as error:
            raise self._refusal(str(error.status() or ""), str(error.message())) from error
        except (OSError, EOFError) as error:
            raise self._refusal("", f"{type(error).__name__}: {error}") from error
        except http.client.HTTPException as error:
            raise self._refusal("UNAVAILABLE", f"an answer that is no HTTP: {error}") from error

    def _told(self, method: str, *arguments: str) -> dict[str, Any]:
        more = {} if self._http else {"as_json": True, "client_timeout": self.timeout_s}
        with self.translated():
            told: dict[str, Any] = getattr(self._client, method)(*arguments, **more)
            return told

    def _not_loaded(self, model: str, error: ServerError) -> ServerError:
        """A refusal to load, in a line, with what to do about it."""
        place = self.address.place
        if LATE.search(error.got):
            return ServerError(
                f"{model!r} to be loaded by {place} within {self.timeout_s:g} s",
                got=f"no answer yet: {error.got}",
                fix="pass a longer --timeout-s: a large model may take minutes to load",
            )
        if GONE.search(error.got) or CONTROL.search(error.got):
            return error
        if UNSEEN.search(error.got):
            return ServerError(
                f"{model!r} in the repository that {place} serves",
                got=error.got,
                fix="name the very repository that the server serves, and see that it may read it",
            )
        why = error.got.strip().split("\n")[0]
        return ServerError(f"{model!r} to be loaded by {place}", got=why, fix=fix_of(why))

    def _refusal(self, status: str, message: str) -> ServerError:
        place, text = self.address.place, f"{status} {message}"
        if CONTROL.search(message):
            return ServerError(
                f"a server at {place} that loads models when it is told to",
                got=message.strip(),
                fix="start it with --model-control-mode=explicit (`tlexport serve REPOSITORY "
                "--control explicit`)",
            )
        if LATE.search(text):
            return ServerError(
                f"an answer from {place} within {self.timeout_s:g} s",
                got=message,
                fix="pass a longer --timeout-s, or give the server more instances",
            )
        unreached = "UNAVAILABLE" in status or not status
        if self.address.tls and unreached and CERTIFICATE.search(message):
            return ServerError(
                f"a server at {place} that speaks TLS, with a certificate that can be trusted",
                got=message,
                fix=f"set {AUTHORITIES} to the certificate of its authority, or ask without TLS",
            )
        if FORBIDDEN.search(status):
            return ServerError(
                f"to be let in at {place}",
                got=message or status,
                fix=f"set {TOKEN} to the token that its gateway wants to see; it is shown over "
                "TLS alone (grpcs://, https://)",
            )
        if "UNAVAILABLE" in status or GONE.search(message) or not message:
            other = "HTTP" if self._http else "gRPC"
            return ServerError(
                f"a Triton server that speaks {other} at {place}",
                got=message or "no answer",
                fix="start one with `tlexport serve model_repository`; use the address it prints",
            )
        if DIED.search(message):
            return ServerError(
                f"an answer from the server at {place}",
                got=message.strip(),
                fix="start the server again: the process that runs this model was killed or has "
                "crashed (see `dmesg` for a want of memory)",
            )
        known = NO_MODEL.search(message)
        return ServerError(
            f"an answer from the server at {place}",
            got=message.strip(),
            fix="name a model and version that it serves; `tlexport serve` prints them"
            if known
            else "send what the model declares, or package the model again",
        )
