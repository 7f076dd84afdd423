"""TLS before a server that has none, as a gateway does it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import trustme
from running import running

CHUNK = 1 << 16


class Handler(socketserver.BaseRequestHandler):
    """One connection, decrypted and passed on."""

    context: ssl.SSLContext
    behind: tuple[str, int]

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # one end is gone, or never wanted this certificate
            outer = self.context.wrap_socket(self.request, server_side=True)
            with outer, socket.create_connection(self.behind) as inner:
                back = threading.Thread(target=copy, args=(inner, outer))
                back.start()
                copy(outer, inner)
                back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    """Until one end is closed."""
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK):
            target.sendall(chunk)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def gateway(behind: str, authority: trustme.CA, name: str = "localhost") -> Iterator[str]:
    """HOST:PORT that speaks TLS, HTTP/2 or HTTP/1.1 in it, before the server at HOST:PORT."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = behind.rpartition(":")
    handler = type("Handler", (Handler,), {"context": context, "behind": (host, int(port))})

    class Gateway(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with running(Gateway(("127.0.0.1", 0), handler)) as port:
        yield f"localhost:{port}"


def written(authority: trustme.CA, folder: Path) -> str:
    """The file of its certificate."""
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    return str(folder / "authority.pem")
