"""The connection to a server: what stands between, and what it says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
import tls
import trustme
from running import running
from tritonclient.grpc import service_pb2

from tlexport.errors import OptionError, ServerError
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
def test_a_file_of_authorities_that_is_not_there(protocol, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(OptionError, match="SSL_CERT_FILE with a file of certificates"):
        Client(parse(f"{protocol}s://localhost:1"), 5)


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


class Closed(BaseHTTPRequestHandler):
    """A gateway that lets in who shows the token `abc`."""

    def do_GET(self):
        known = self.headers.get("authorization") == "Bearer abc"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b'{"name": "triton"}' if known else b"who are you?")

    def log_message(self, *_):
        """Say nothing."""


class ClosedToo(grpc.GenericRpcHandler):
    """The same for gRPC."""

    def service(self, details):
        def answer(request, context):
            if ("authorization", "Bearer abc") not in details.invocation_metadata:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
            return service_pb2.ServerMetadataResponse(name="triton").SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture(params=["grpc", "http"])
def closed(request):
    """The protocol, and HOST:PORT of a server that lets in who shows the token."""
    if request.param == "http":
        with running(ThreadingHTTPServer(("127.0.0.1", 0), Closed)) as port:
            yield "http", f"127.0.0.1:{port}"
        return
    server = grpc.server(ThreadPoolExecutor(2), handlers=[ClosedToo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield "grpc", f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_token_is_shown_over_tls_alone(closed, tmp_path, monkeypatch):
    protocol, place = closed
    authority = trustme.CA()
    monkeypatch.setenv("SSL_CERT_FILE", tls.written(authority, tmp_path))
    monkeypatch.setenv("TLEXPORT_TOKEN", "abc")
    with tls.gateway(place, authority) as gateway:
        client = Client(parse(f"{protocol}s://{gateway}"), 5)
        assert client.server()["name"] == "triton"
        client.close()
        client = Client(parse(f"{protocol}://{place}"), 5)
        refused(client)
        client.close()
        monkeypatch.setenv("TLEXPORT_TOKEN", "another")
        client = Client(parse(f"{protocol}s://{gateway}"), 5)
        refused(client)
        client.close()


def refused(client):
    with pytest.raises(ServerError, match="to be let in") as caught:
        client.server()
    assert "who are you?" in caught.value.got
    assert "TLEXPORT_TOKEN" in caught.value.fix


def test_a_shape_of_401_is_no_closed_door():
    client = Client(parse("127.0.0.1:9"), 1)
    error = client._refusal("StatusCode.INVALID_ARGUMENT", "expected [-1,401], got [-1,403]")
    assert "send what the model declares" in error.fix
    client.close()


@pytest.mark.parametrize("where", ["localhost", "localhost:65536", ":8001", "ftp://h:1", "h:x"])
def test_what_is_no_address(where):
    with pytest.raises(OptionError, match="HOST:PORT"):
        parse(where)
