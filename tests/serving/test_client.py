"""The connection to a server: what stands between, and what it says."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tls
import trustme

from tlexport.errors import OptionError, ServerError
from tlexport.serving import client as clients
from tlexport.serving.client import Client, parse

CLOSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def behind_a_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, CLOSED)
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_server_on_this_machine_is_asked_past_any_proxy(shared_server):
    client = Client(parse(shared_server.grpc), 5)
    assert client.server()["name"] == "triton"
    client.close()


def test_a_server_elsewhere_is_asked_through_the_proxy():
    client = Client(parse("203.0.113.7:8001"), 5)
    with pytest.raises(ServerError, match=r"127.0.0.1:9"):
        client.server()
    client.close()


def test_http_asked_of_the_grpc_port(shared_server):
    client = Client(parse(f"http://{shared_server.grpc}"), 5)
    with pytest.raises(ServerError, match="speaks HTTP at") as caught:
        client.server()
    assert "no HTTP" in caught.value.got
    client.close()


def test_a_model_whose_process_died_is_told_of():
    client = Client(parse("127.0.0.1:9"), 1)
    error = client._refusal("INTERNAL", "Stub process 'double_0_0' is not healthy.")
    assert "start the server again" in error.fix
    client.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tls_by_an_authority_that_is_trusted(protocol, shared_server, tmp_path, monkeypatch):
    authority = trustme.CA()
    with tls.gateway(getattr(shared_server, protocol), authority) as place:
        monkeypatch.setenv("SSL_CERT_FILE", tls.written(authority, tmp_path))
        client = Client(parse(f"{protocol}s://{place}"), 5)
        assert client.server()["name"] == "triton"
        client.close()
        monkeypatch.setenv("SSL_CERT_FILE", tls.written(trustme.CA(), tmp_path))
        client = Client(parse(f"{protocol}s://{place}"), 5)
        with pytest.raises(ServerError, match="a certificate that can be trusted") as caught:
            client.server()
        assert "SSL_CERT_FILE" in caught.value.fix
        client.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_certificate_of_another_host_is_refused(protocol, shared_server, tmp_path, monkeypatch):
    authority = trustme.CA()
    monkeypatch.setenv("SSL_CERT_FILE", tls.written(authority, tmp_path))
    with tls.gateway(getattr(shared_server, protocol), authority, "elsewhere.example") as place:
        client = Client(parse(f"{protocol}s://{place}"), 5)
        with pytest.raises(ServerError, match="a certificate that can be trusted"):
            client.server()
        client.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tls_asked_of_a_server_without(protocol, shared_server):
    client = Client(parse(f"{protocol}s://{getattr(shared_server, protocol)}"), 5)
    with pytest.raises(ServerError, match="speaks TLS"):
        client.server()
    client.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_gateway_wants_a_token(protocol, shared_server, monkeypatch):
    """The server itself asks for none: it is looked at what the client sends."""
    monkeypatch.setenv("TLEXPORT_TOKEN", "abc")
    seen = []
    show = clients.Bearer.__call__
    monkeypatch.setattr(
        clients.Bearer, "__call__", lambda self, r: (show(self, r), seen.append(r.headers))
    )
    where = {"grpc": shared_server.grpc, "http": f"http://{shared_server.http}"}[protocol]
    client = Client(parse(where), 5)
    assert client.server()["name"] == "triton"
    assert [headers["authorization"] for headers in seen] == ["Bearer abc"]
    assert "TLEXPORT_TOKEN" in client._refusal("StatusCode.UNAUTHENTICATED", "no token").fix
    client.close()


class Closed(BaseHTTPRequestHandler):
    """A gateway that lets in who shows the token `abc`."""

    def do_GET(self):
        known = self.headers.get("authorization") == "Bearer abc"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b'{"name": "triton"}' if known else b"who are you?")

    def log_message(self, *_):
        """Say nothing."""


def test_who_is_not_let_in_is_told_what_to_show(monkeypatch):
    monkeypatch.delenv("TLEXPORT_TOKEN", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Closed) as gateway:
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        address = parse(f"http://127.0.0.1:{gateway.server_port}")
        client = Client(address, 5)
        with pytest.raises(ServerError, match="to be let in") as caught:
            client.server()
        assert "TLEXPORT_TOKEN" in caught.value.fix
        assert "who are you?" in caught.value.got
        client.close()
        monkeypatch.setenv("TLEXPORT_TOKEN", "abc")
        client = Client(address, 5)
        assert client.server() == {"name": "triton"}
        client.close()
        gateway.shutdown()


def test_a_shape_of_401_is_no_closed_door():
    client = Client(parse("127.0.0.1:9"), 1)
    error = client._refusal("StatusCode.INVALID_ARGUMENT", "expected [-1,401], got [-1,403]")
    assert "send what the model declares" in error.fix
    client.close()


@pytest.mark.parametrize("where", ["localhost", "localhost:65536", ":8001", "ftp://h:1", "h:x"])
def test_what_is_no_address(where):
    with pytest.raises(OptionError, match="HOST:PORT"):
        parse(where)
