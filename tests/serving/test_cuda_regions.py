"""Memory of a GPU shared with a server; without a GPU memory of the machine stands for it."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from serving import bundles
from tritonclient.utils import cuda_shared_memory

from tlexport.errors import ServerError
from tlexport.options import PackageOptions, RuntimeOptions, ServeOptions
from tlexport.runtimes import connect
from tlexport.serving import choice, shared_memory
from tlexport.stages.package import package


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    package(bundles.make(folder / "b.bundle"), folder / "models", PackageOptions(max_batch=16))
    server, _ = choice.start("embedded", folder / "models", ServeOptions())
    yield server
    server.stop()


class Region:
    """What stands for memory of a GPU: a file of shared memory, which its key names."""

    def __init__(self, name: str, size: int) -> None:
        self.path = Path("/dev/shm") / f"{name}-gpu"
        self.path.write_bytes(bytes(size))
        with self.path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), size)


@pytest.fixture
def gpu(monkeypatch) -> list[Region]:
    """CUDA's part of Triton's client, and how a server is told; the regions there are now."""
    made: list[Region] = []

    def create(name: str, size: int, device: int) -> Region:
        assert device == 0
        made.append(Region(name, size))
        return made[-1]

    def put(region: Region, arrays: list[np.ndarray]) -> None:
        whole = b"".join(array.tobytes() for array in arrays)
        region.memory[: len(whole)] = whole

    def get(region: Region, dtype: type, shape: list[int]) -> np.ndarray:
        return np.frombuffer(region.memory[:], dtype).reshape(shape).copy()

    def destroy(region: Region) -> None:
        made.remove(region)
        region.path.unlink()

    def register(self, name: str, handle: bytes, device: int, size: int) -> None:
        self.register_system_shared_memory(name, handle.decode(), size)

    for name, stand_in in {
        "create_shared_memory_region": create,
        "get_raw_handle": lambda region: f"/{region.path.name}".encode(),
        "set_shared_memory_region": put,
        "get_contents_as_numpy": get,
        "destroy_shared_memory_region": destroy,
    }.items():
        monkeypatch.setattr(cuda_shared_memory, name, stand_in)
    client = tritonclient.grpc.InferenceServerClient
    monkeypatch.setattr(client, "register_cuda_shared_memory", register)
    monkeypatch.setattr(
        client, "unregister_cuda_shared_memory", client.unregister_system_shared_memory
    )
    return made


def test_it_answers_as_over_the_wire(server, gpu) -> None:
    pixels = bundles.images(5)
    wire = connect(f"triton@{server.grpc}", None, RuntimeOptions())
    shared = connect(f"triton@cudashm://{server.grpc}", None, RuntimeOptions())
    assert shared.facts()["protocol"] == "cudashm"
    for rows in (pixels[:1], pixels, pixels[1:3]):
        wanted, told = wire({"images": rows}), shared({"images": rows})
        assert told.keys() == wanted.keys()
        assert all(np.array_equal(told[name], wanted[name]) for name in wanted)
    assert len(gpu) == 2, "in and out, the larger ones in place of the smaller"
    shared.close()
    wire.close()
    assert gpu == []
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        assert not client.get_system_shared_memory_status().regions


def test_what_the_server_does_not_take_is_given_back(server, gpu, monkeypatch) -> None:
    """The server is on another machine, or without a GPU: it refuses in its own words."""
    monkeypatch.setattr(cuda_shared_memory, "get_raw_handle", lambda region: b"/nothing-there")
    runtime = connect(f"triton@cudashm://{server.grpc}", None, RuntimeOptions())
    with pytest.raises(ServerError, match="GPU that this process and the server share") as caught:
        runtime({"images": bundles.images(1)})
    assert "nothing-there" in caught.value.got
    assert "triton@shm://" in caught.value.fix
    assert gpu == []
    runtime.close()


@pytest.mark.parametrize("step", ["set_shared_memory_region", "get_contents_as_numpy"])
def test_a_gpu_that_fails_is_told_and_nothing_is_left(server, gpu, monkeypatch, step) -> None:
    def fail(*_: object) -> None:
        raise cuda_shared_memory.CudaSharedMemoryException("the card fell off the bus")

    runtime = connect(f"triton@cudashm://{server.grpc}", None, RuntimeOptions())
    with monkeypatch.context() as patch, pytest.raises(ServerError) as caught:
        patch.setattr(cuda_shared_memory, step, fail)
        runtime({"images": bundles.images(1)})
    assert "fell off the bus" in caught.value.got
    assert runtime({"images": bundles.images(1)})["logits"].shape == (1, 3)
    runtime.close()
    assert gpu == []


def test_a_gpu_without_room_for_more_is_told_and_nothing_is_left(server, gpu, monkeypatch) -> None:
    runtime = connect(f"triton@cudashm://{server.grpc}", None, RuntimeOptions())
    runtime({"images": bundles.images(1)})

    def full(*_: object) -> None:
        raise cuda_shared_memory.CudaSharedMemoryException("out of memory")

    monkeypatch.setattr(cuda_shared_memory, "create_shared_memory_region", full)
    with pytest.raises(ServerError, match="GPU that this process and the server share") as caught:
        runtime({"images": bundles.images(16)})
    assert "out of memory" in caught.value.got
    runtime.close()
    assert gpu == []


def test_a_machine_without_a_gpu_is_told_so(server) -> None:
    """In a process of its own: where there is a GPU, CUDA looks at the variable once."""
    code = (
        "import sys; from serving import bundles\n"
        "from tlexport.errors import ServerError\n"
        "from tlexport.runtimes import connect; from tlexport.options import RuntimeOptions\n"
        f"runtime = connect('triton@cudashm://{server.grpc}', None, RuntimeOptions())\n"
        "try: runtime({'images': bundles.images(1)})\n"
        "except ServerError as error: print(error)\n"
        "runtime.close()\n"
    )
    environ = {"PYTHONPATH": str(Path(__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    assert "expected an NVIDIA GPU that this process and the server share" in told
    assert "CUDA" in told
    assert "triton@shm://" in told


@pytest.mark.gpu
def test_bytes_come_back_from_a_card() -> None:
    told: list[tuple[object, ...]] = []

    class Client:
        def register_cuda(self, *about: object) -> None:
            told.append(about)

        def unregister_cuda(self, name: str) -> None:
            told.append((name,))

    region = shared_memory.CudaRegion(Client(), 1000)
    values = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    region.write(values, 64)
    region.write_bytes(b"bytes", 600)
    region.send()
    region.fetch()
    assert np.array_equal(region.view(np.dtype("float32"), (10, 10), 64).ravel(), values)
    assert region.view(np.dtype("uint8"), (5,), 600).tobytes() == b"bytes"
    region.close()
    assert [about[0] for about in told] == [region.name, region.name]
