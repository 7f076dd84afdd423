"""Manifests: legal by the schemas, true to the configurations, and what they ask is answered."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import crds
import kubernetes_validate
import numpy as np
import prometheus
import pytest
import small_bundles
import yaml

from tlexport.bundle import Bundle
from tlexport.errors import BundleError, OptionError, RepositoryError, TlexportError
from tlexport.options import (
    ExportOptions,
    ManifestOptions,
    PackageOptions,
    RuntimeOptions,
    ServeOptions,
)
from tlexport.runtimes import connect
from tlexport.serving import choice, config
from tlexport.serving.manifests import dashboard
from tlexport.stages import manifests as stage
from tlexport.stages.export import export
from tlexport.stages.manifests import manifests
from tlexport.stages.package import package
from tlexport.stages.verify import verify

ROOT = Path(__file__).parents[2]
OURS = ROOT / "model_repository"


def options(output: Path, **more: Any) -> ManifestOptions:
    given = {"name": "digits", "storage_uri": "s3://models/digits", "output": str(output)}
    return ManifestOptions(**given | more)


def read(folder: Path) -> dict[str, Any]:
    """Every YAML file that was written, by its path; none holds two documents."""
    return {
        str(path.relative_to(folder)): yaml.safe_load(path.read_text())
        for path in folder.rglob("*.y*ml")
    }


@pytest.fixture
def ours(tmp_path) -> Path:
    return shutil.copytree(OURS, tmp_path / "model_repository")


def rewrite(repository: Path, change) -> None:
    """Have `change` edit the configuration of the model."""
    path = repository / "digits" / config.CONFIG
    found = config.parse(path)
    change(found)
    path.write_text(config.text(found))


def test_the_folder_deploy_is_what_the_command_makes(tmp_path):
    """Beside the image that it is built on, nothing there was written by hand."""
    example = "registry.example/training:1"
    manifests(OURS, options(tmp_path / "deploy", training_image=example))
    made = {
        p.relative_to(tmp_path / "deploy") for p in (tmp_path / "deploy").rglob("*") if p.is_file()
    }
    there = {p.relative_to(ROOT / "deploy") for p in (ROOT / "deploy").rglob("*") if p.is_file()}
    assert there - made <= {Path("Dockerfile")}
    repository = r"MODEL_REPOSITORY:-[^}]*"  # where it lies from the output folder
    for name in sorted(made):
        if name.name.startswith("."):
            continue
        ours, theirs = (
            (folder / name).read_text() for folder in (tmp_path / "deploy", ROOT / "deploy")
        )
        assert re.sub(repository, "", ours) == re.sub(repository, "", theirs), name
    assert (
        "${MODEL_REPOSITORY:-../model_repository}" in (ROOT / "deploy" / "compose.yaml").read_text()
    )


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"storage_uri": "pvc://claim/some/where", "min_replicas": 2},
        {"storage_uri": "as://account/container/path", "secret": "keys", "control": "explicit"},
        {"storage_uri": "gs://bucket", "namespace": "ml", "triton": "24.10", "image": "own:1"},
    ],
)
def test_kubernetes_and_the_operators_take_them(ours, tmp_path, more):
    manifests(ours, options(tmp_path / "out", **more))
    found = read(tmp_path / "out")
    core = [name for name in found if name.startswith("kubernetes/")]
    kinds = {found[name]["kind"] for name in core}
    wanted = {"Deployment", "Service", "PodMonitor", "HorizontalPodAutoscaler"}
    assert kinds == wanted | ({"PodDisruptionBudget"} if more.get("min_replicas") else set())
    for name in core:
        assert found[name]["metadata"]["namespace"] == more.get("namespace", "default")
        if found[name]["kind"] != "PodMonitor":
            for version in ("1.28", crds.KUBERNETES):
                kubernetes_validate.validate(found[name], version, strict=True)
    monitor = found["kubernetes/podmonitor.yaml"]["spec"]
    known = crds.prometheus_fields("PodMonitorSpec")
    assert set(monitor) <= set(known)
    assert set(monitor["podMetricsEndpoints"][0]) <= set(
        crds.prometheus_fields("PodMetricsEndpoint")
    )
    runtime, service = found["kserve/servingruntime.yaml"], found["kserve/inferenceservice.yaml"]
    assert runtime["apiVersion"] == "serving.kserve.io/v1alpha1"
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    crds.hold_kserve(without_version(runtime), "V1alpha1ServingRuntime", "runtime")
    crds.hold_kserve(without_version(service), "V1beta1InferenceService", "service")
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    image = more.get("image") or f"nvcr.io/nvidia/tritonserver:{more.get('triton', '26.08')}-py3"
    pod = found["kubernetes/deployment.yaml"]["spec"]["template"]["spec"]
    assert {pod["containers"][0]["image"], runtime["spec"]["containers"][0]["image"]} == {image}


def without_version(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("apiVersion", "kind")}


def test_a_wrong_name_is_noticed_by_what_checks_them(ours, tmp_path):
    """The checks of this file can fail."""
    manifests(ours, options(tmp_path))
    found = read(tmp_path)
    deployment = found["kubernetes/deployment.yaml"]
    deployment["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, crds.KUBERNETES, strict=True)
    runtime = without_version(found["kserve/servingruntime.yaml"])
    runtime["spec"]["protocolVersion"] = "v2"
    with pytest.raises(AssertionError, match="protocolVersion"):
        crds.hold_kserve(runtime, "V1alpha1ServingRuntime", "runtime")


def test_selectors_ports_and_volumes_fit_each_other(ours, tmp_path):
    manifests(ours, options(tmp_path, storage_uri="pvc://claim/some/where"))
    found = read(tmp_path)
    pod = found["kubernetes/deployment.yaml"]["spec"]["template"]
    labels, container = pod["metadata"]["labels"], pod["spec"]["containers"][0]
    for name in ("deployment", "service", "podmonitor"):
        selector = found[f"kubernetes/{name}.yaml"]["spec"]["selector"]
        assert (selector.get("matchLabels") or selector).items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    asked = {port["targetPort"] for port in found["kubernetes/service.yaml"]["spec"]["ports"]}
    asked |= {
        container[f"{p}Probe"]["httpGet"]["port"] for p in ("startup", "readiness", "liveness")
    }
    asked |= {e["port"] for e in found["kubernetes/podmonitor.yaml"]["spec"]["podMetricsEndpoints"]}
    assert asked == set(ports)
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["spec"]["volumes"]}
    assert (mounts["models"]["mountPath"], mounts["models"]["subPath"]) == ("/models", "some/where")
    assert "--model-repository=/models" in container["args"]
    scaler = found["kubernetes/autoscaler.yaml"]["spec"]
    assert (
        scaler["scaleTargetRef"]["name"] == found["kubernetes/deployment.yaml"]["metadata"]["name"]
    )
    (rule,) = found["prometheus-adapter-values.yaml"]["rules"]["custom"]
    assert rule["name"]["as"] == scaler["metrics"][0]["pods"]["metric"]["name"]
    assert scaler["metrics"][0]["pods"]["target"]["averageValue"] == "10000"
    compose = found["compose.yaml"]["services"]
    for service in compose.values():
        for volume in service["volumes"]:
            source = volume.split(":", 1)[0]
            assert source.startswith("${") or (tmp_path / source).exists(), volume


def test_limits_agree_with_the_thread_budget(ours, tmp_path):
    def three_by_two(found) -> None:
        found.instance_group[0].count = 3
        found.parameters["intra_op_thread_count"].string_value = "2"

    rewrite(ours, three_by_two)
    report = manifests(ours, options(tmp_path / "out"))
    assert report.cores == 6
    found = read(tmp_path / "out")
    for container in (
        found["kubernetes/deployment.yaml"]["spec"]["template"]["spec"]["containers"][0],
        found["kserve/servingruntime.yaml"]["spec"]["containers"][0],
    ):
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["resources"]["limits"]["cpu"] == "6"
        assert container["resources"]["limits"]["memory"] == f"{report.memory_mib}Mi"
    assert found["compose.yaml"]["services"]["triton"]["cpus"] == 6
    size = (ours / "digits" / "1" / "model.onnx").stat().st_size / 2**20
    assert 512 + 6 * size <= report.memory_mib <= 512 + 6 * size + 512


def test_instances_on_a_gpu_ask_for_one(ours, tmp_path):
    rewrite(ours, lambda found: setattr(found.instance_group[0], "kind", 1))
    report = manifests(ours, options(tmp_path / "out"))
    assert (report.gpus, report.cores) == (1, 1)
    pod = read(tmp_path / "out")["kubernetes/deployment.yaml"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["requests"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"name": ""}, "--name as a DNS label"),
        ({"name": "My_Model"}, "--name as a DNS label"),
        ({"name": "x" * 41}, "--name as a DNS label"),
        ({"namespace": "a b"}, "--namespace as a DNS label"),
        ({"min_replicas": 5}, "--max-replicas of at least --min-replicas"),
        ({"queue_ms": 0.0}, "--queue-ms"),
        ({"storage_uri": ""}, "--storage-uri as s3://"),
        ({"storage_uri": "/models"}, "--storage-uri as s3://"),
        ({"storage_uri": "s3://"}, "--storage-uri as s3://"),
        ({"storage_uri": "as://account"}, "--storage-uri as s3://"),
        ({"storage_uri": "pvc://claim/../.."}, "--storage-uri as s3://"),
        ({"storage_uri": "s3://b/x\n  - evil"}, "--storage-uri as s3://"),
        ({"triton": "12.34"}, "release"),
    ],
)
def test_wrong_requests_write_nothing(ours, tmp_path, more, expected):
    with pytest.raises(OptionError) as caught:
        manifests(ours, options(tmp_path / "out", **more))
    assert expected in caught.value.expected
    assert not (tmp_path / "out").exists()


def test_repositories_that_cannot_be_served_are_refused(ours, tmp_path):
    with pytest.raises(TlexportError, match="model repository"):
        manifests(tmp_path / "nothing", options(tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError, match="an empty folder"):
        manifests(tmp_path / "empty", options(tmp_path / "out"))
    rewrite(ours, lambda found: found.parameters["intra_op_thread_count"].Clear())
    with pytest.raises(RepositoryError, match="takes every core"):
        manifests(ours, options(tmp_path / "out"))
    rewrite(ours, lambda found: setattr(found, "max_batch_size", 2))
    rewrite(
        ours, lambda found: setattr(found.parameters["intra_op_thread_count"], "string_value", "1")
    )
    with pytest.raises(RepositoryError, match=r"26\.08 loads"):  # preferred batch of 8
        manifests(ours, options(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_python_models_need_an_image_of_ones_own(ours, tmp_path):
    model = ours / "first"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    (model / "config.pbtxt").write_text(
        'name: "first" backend: "python" max_batch_size: 0\n'
        'input { name: "x" data_type: TYPE_FP32 dims: 1 }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
        "instance_group { count: 2 kind: KIND_CPU }\n"
    )
    with pytest.raises(OptionError, match="--image with what the Python models"):
        manifests(ours, options(tmp_path / "out"))
    report = manifests(ours, options(tmp_path / "out", image="registry/own:3"))
    assert report.cores == 2 + 2
    assert report.models == ("digits", "first")


def test_what_was_changed_by_hand_is_not_lost(ours, tmp_path):
    out = tmp_path / "out"
    manifests(ours, options(out))
    assert manifests(ours, options(out, queue_ms=5)).files  # untouched: made anew
    edited = out / "kubernetes" / "service.yaml"
    edited.write_text(edited.read_text() + "# mine\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(OptionError, match=r"kubernetes/service\.yaml"):
        manifests(ours, options(out, queue_ms=7))
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    manifests(ours, options(out, queue_ms=7, force=True))
    assert "# mine" not in edited.read_text()


def test_a_run_that_was_stopped_is_made_good(ours, tmp_path, monkeypatch):
    """What it had written already is nobody's change, nor is what it had not."""
    out = tmp_path / "out"
    manifests(ours, options(out))
    before = {path: path.read_bytes() for path in out.rglob("*.yaml")}
    real, written = stage.write_atomic, []

    def full(path, data):
        written.append(path)
        if len(written) == 8:
            raise BundleError("room", got="No space left on device", fix="make some")
        real(path, data)

    monkeypatch.setattr(stage, "write_atomic", full)
    with pytest.raises(BundleError, match="No space"):
        manifests(ours, options(out, namespace="other"))
    monkeypatch.undo()
    changed = [path for path in before if path.read_bytes() != before[path]]
    assert 0 < len(changed) < len(before)
    manifests(ours, options(out, namespace="third"))
    assert "namespace: third" in (out / "kubernetes" / "service.yaml").read_text()
    (out / "kubernetes" / "service.yaml").write_text("mine\n")
    with pytest.raises(OptionError, match=r"service\.yaml"):
        manifests(ours, options(out))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A Prometheus that reads a real server under load: ask it in PromQL."""
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        small_bundles.plug_task(patch)
        bundle = small_bundles.make(folder / "tiny", small_bundles.healthy_onnx())
        export(bundle, ExportOptions(force=True))
        verify(bundle)
        package(bundle, folder / "models", PackageOptions(queue_delay_us=200))
        server, _ = choice.start("embedded", folder / "models", ServeOptions())
        server.await_ready(60)
        manifests(folder / "models", options(folder / "out", name="tiny", triton="24.10"))
        text = (folder / "out" / "prometheus.yml").read_text()
        text = text.replace("triton:8002", server.metrics).replace("5s", "1s")
        (folder / "prometheus.yml").write_text(text)
        home = Bundle(bundle)
        with load(server, home), running(folder) as ask:
            yield ask
        server.stop()


class load:
    """Several clients that ask until the end."""

    def __init__(self, server, home: Bundle) -> None:
        self._stop = threading.Event()
        self._where, self._home = f"triton@{server.grpc}", home
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def _run(self) -> None:
        runtime = connect(self._where, self._home, RuntimeOptions())
        inputs = {name: array[:2] for name, array in self._home.golden().inputs.items()}
        while not self._stop.is_set():
            runtime(inputs)
        runtime.close()

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class running:
    """A Prometheus on a free port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self):
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._process = subprocess.Popen(
            [
                prometheus.fetch() / "prometheus",
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'tsdb'}",
                f"--web.listen-address={self._address}",
            ],
            stderr=subprocess.PIPE,
        )
        return self.ask

    def ask(self, query: str, seconds: float = 30) -> list[dict[str, Any]]:
        """What a query gives, waited for."""
        url = f"http://{self._address}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        until = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    found = json.load(answer)["data"]["result"]
            except OSError:
                found = []
            numbers = [float(each["value"][1]) for each in found]
            if (numbers and np.isfinite(numbers).any()) or time.monotonic() > until:
                return found
            time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._process.stderr.close()


QUERIES = [(title, query) for title, _, queries in dashboard.PANELS for query, _ in queries]


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_every_panel_shows_something_of_a_real_server(watched, title, query):
    found = watched(query)
    assert found, f"{title}: {query}"
    values = [float(each["value"][1]) for each in found]
    assert all(value >= 0 for value in values if np.isfinite(value))
    if title in ("Requests", "Batch size, mean", "Latency, mean"):
        assert max(values) > 0
    if title == "Latency by quantile":
        assert {each["metric"]["quantile"] for each in found} >= {"0.5", "0.99"}


def test_the_autoscaler_s_metric_is_there(watched, ours, tmp_path):
    manifests(ours, options(tmp_path / "out"))
    (rule,) = read(tmp_path / "out")["prometheus-adapter-values.yaml"]["rules"]["custom"]
    query = (
        rule["metricsQuery"]
        .replace("<<.GroupBy>>", "model")
        .replace("<<.LabelMatchers>>", 'model="tiny"')
    )
    (found,) = watched(query)
    assert float(found["value"][1]) > 0
    nothing = query.replace('"tiny"', '"digits"')
    assert watched(nothing, seconds=0) == []


def test_promtool_takes_the_configuration(ours, tmp_path):
    manifests(ours, options(tmp_path / "out"))
    command = [
        prometheus.fetch() / "promtool",
        "check",
        "config",
        tmp_path / "out" / "prometheus.yml",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
