"""The connection to a server: what stands between, and what it says."""

from __future__ import annotations

import pytest

from tlexport.errors import ServerError
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
