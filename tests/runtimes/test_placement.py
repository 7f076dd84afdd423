"""A session that is not where it was asked to be: what is told of it.

There is no GPU here. What a machine with one records (which provider has which node) has the form
that a session on the CPU records, which is real; the libraries that are missing are missing.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import onnxruntime as ort
import pytest
from serving import small_models as small

from tlexport.errors import ExportError, MissingDependency
from tlexport.runtimes.ort import PROVIDERS, hold_placement
from tlexport.serving.backends.onnxruntime import tlexport_placement as placement

CUDA = PROVIDERS["cuda"]
LIBRARIES = Path(ort.__file__).parent / "capi"


def session_of(model):
    options = ort.SessionOptions()
    options.add_session_config_entry(placement.RECORD, "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.fixture
def mixed():
    """A real session: sizes, and two nodes that compute."""
    float_ = small.TensorProto.FLOAT
    return session_of(
        small.build(
            [
                ("Shape", ["x"], ["s"]),
                ("Relu", ["x"], ["r"]),
                ("Relu", ["r"], ["t"]),
                ("Softmax", ["t"], ["u"]),
                ("Reshape", ["u", "s"], ["y"]),
            ],
            [("x", float_, ["n", 3])],
            [("y", float_, ["n", 3])],
        )
    )


class Recorded:
    """What a session on a GPU says of itself; its nodes are those of a real session."""

    def __init__(self, session, providers, on_gpu=()):
        parts = session.get_provider_graph_assignment_info()
        self._parts = [Part(part, on_gpu) for part in parts]
        self._providers = list(providers)

    def get_providers(self):
        return self._providers

    def get_provider_graph_assignment_info(self):
        return self._parts


class Part:
    def __init__(self, part, on_gpu):
        self._nodes = part.get_nodes()
        moved = {node.op_type for node in self._nodes} <= set(on_gpu)
        self.ep_name = "CUDAExecutionProvider" if moved else part.ep_name

    def get_nodes(self):
        return self._nodes


def test_what_computes_is_counted_and_what_computes_sizes_is_not(mixed):
    assert placement.strayed(mixed, CUDA) == Counter({"Relu": 2, "Softmax": 1})
    assert placement.strayed(mixed, ["CPUExecutionProvider"]) == Counter()


def test_another_domain_is_named():
    model = small.double()
    model.graph.node[0].CopyFrom(
        small.helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    )
    assert placement.strayed(session_of(model), CUDA) == Counter({"com.microsoft:Gelu": 1})


def test_an_onnxruntime_that_cannot_tell_is_believed():
    assert placement.strayed(object(), CUDA) is None


def test_the_most_frequent_are_told_first():
    nodes = Counter({f"Op{number}": number for number in range(1, 12)})
    assert placement.told(nodes, 2) == "11 Op11, 10 Op10, ..."
    assert placement.told(Counter({"Relu": 2})) == "2 Relu"


def test_a_part_on_the_cpu_is_an_error_that_names_it(mixed):
    both = [*CUDA, "CPUExecutionProvider"]
    with pytest.raises(ExportError, match=r"on the CPU: 1 Softmax\n") as caught:
        hold_placement(Recorded(mixed, both, ["Relu"]), "cuda:0", CUDA)
    assert "CUDAExecutionProvider for ort@cuda:0" in caught.value.expected
    hold_placement(Recorded(mixed, both, ["Relu", "Softmax"]), "cuda:0", CUDA)


def test_a_provider_that_did_not_load_is_an_error(mixed):
    with pytest.raises(MissingDependency, match="fell back to CPUExecutionProvider") as caught:
        hold_placement(mixed, "cuda:0", CUDA)
    assert "CUDAExecutionProvider for ort@cuda:0" in caught.value.expected
    with pytest.raises(MissingDependency, match="Tensorrt"):
        hold_placement(Recorded(mixed, CUDA), "tensorrt:0", PROVIDERS["tensorrt"])


def test_the_missing_library_is_named():
    for name in ("cuda", "tensorrt"):
        why = placement.why_not(LIBRARIES / f"libonnxruntime_providers_{name}.so", "13.0")
        assert any(
            said in why for said in ("cannot open shared object", "no such device", "this build")
        )
    assert "no libonnxruntime_providers_none.so" in placement.why_not(
        LIBRARIES / "libonnxruntime_providers_none.so", ""
    )


MISSING = "libcublasLt.so.12: cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("reason", "cuda", "torch_cuda", "wanted"),
    [
        (MISSING, "12.8", None, "; onnxruntime was built for CUDA 12.8, and libcublasLt.so.13 is"),
        (MISSING, "12.8", "13.0", "; PyTorch brought CUDA 13.0, which it cannot use"),
        (MISSING, "12.8", "12.6", "of another major version"),
        ("libcuda.so.1: cannot open", "12.8", None, "the NVIDIA driver's own"),
        ("something else", "12.8", None, ""),
    ],
)
def test_another_cuda_is_told_of(tmp_path, monkeypatch, reason, cuda, torch_cuda, wanted):
    (tmp_path / "libcublasLt.so.13").touch()
    (tmp_path / "libcublasLt.so").touch()
    monkeypatch.setattr(os, "environ", {"LD_LIBRARY_PATH": f"{tmp_path}:/nowhere"})
    monkeypatch.setattr(placement.sys, "path", [])
    hint = placement._hint(reason, cuda, torch_cuda)
    assert wanted in hint
    assert bool(hint) == bool(wanted)


def test_libraries_are_looked_for_in_the_packages_of_pip(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages/nvidia/cu13/lib"
    folder.mkdir(parents=True)
    (folder / "libcublasLt.so.13").touch()
    monkeypatch.setattr(placement.sys, "path", [str(tmp_path / "site-packages")])
    monkeypatch.setattr(os, "environ", {})
    assert placement.majors("libcublasLt.so", placement.search_folders()) >= {"13"}
