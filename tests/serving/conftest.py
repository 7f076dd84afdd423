from __future__ import annotations

import importlib
import sys

import pytest
import tritonclient.grpc
from serving import small_models

from tlexport.options import ServeOptions
from tlexport.serving import choice
from tlexport.serving.runtime_folder import BACKENDS


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    """One server with every small model."""
    repository = tmp_path_factory.mktemp("shared") / "models"
    small_models.lay_all(repository)
    server, _ = choice.start("embedded", repository, ServeOptions())
    yield server
    server.stop()


@pytest.fixture(scope="session")
def loading_server(tmp_path_factory):
    """A server that loads what it is told to: (its repository, itself, a client)."""
    yield from _loading(tmp_path_factory.mktemp("loading") / "models", small_models.plain())


@pytest.fixture(scope="session")
def completing_server(tmp_path_factory):
    """The same, but it completes configurations; the model `first` has none."""
    yield from _loading(tmp_path_factory.mktemp("completing") / "models", None)


def _loading(repository, config):
    small_models.lay(repository, "first", small_models.double(), config)
    server, _ = choice.start("embedded", repository, ServeOptions(control="explicit"))
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    yield repository, server, client
    client.close()
    server.stop()


@pytest.fixture
def backend_session(monkeypatch):
    """The backend's module that makes sessions, imported as the server does."""
    monkeypatch.syspath_prepend(str(BACKENDS / "onnxruntime"))
    yield importlib.import_module("tlexport_session")
    for name in ("tlexport_session", "tlexport_rules", "tlexport_placement"):
        sys.modules.pop(name, None)


@pytest.fixture
def backend_rules(backend_session):
    """The backend's module that holds a configuration against a model."""
    return importlib.import_module("tlexport_rules")
