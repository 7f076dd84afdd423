from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import azurite
import gcs
import obstore
import obstore.store
import piped
import pytest
import s3
from serving import bundles

from tlexport.errors import MissingDependency, OptionError, RepositoryError
from tlexport.options import (
    DeployOptions,
    LintOptions,
    PackageOptions,
    RollbackOptions,
    RunOptions,
    ServeOptions,
)
from tlexport.serving import choice, config, lease, remote, repository, rollout, standing
from tlexport.serving.client import Client
from tlexport.stages.deploy import deploy
from tlexport.stages.lint import lint
from tlexport.stages.package import package
from tlexport.stages.rollback import rollback
from tlexport.stages.serve import serve

numbers = itertools.count()

HELD = """
import os, sys, time
from tlexport.serving import store
with store.opened({url!r}, "insects"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def address():
    try:
        s3.fetch()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"moto's server needs pip and a network: {error}")
    with s3.serve() as address:
        yield address


@pytest.fixture(scope="module")
def azure():
    try:
        azurite.fetch()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"Azurite needs npm and a network: {error}")
    with azurite.serve() as address:
        yield address


@pytest.fixture(scope="module")
def google():
    with gcs.serve() as address:
        yield address


STORES = {  # the variables, that of the address, the fixture that knows it, the place
    "S3": (s3.ENVIRONMENT, "AWS_ENDPOINT_URL", "address", f"s3://{s3.BUCKET}"),
    "Azure": (
        azurite.ENVIRONMENT,
        "AZURE_STORAGE_ENDPOINT",
        "azure",
        f"az://{azurite.CONTAINER}",
    ),
    "Google": (gcs.ENVIRONMENT, "GOOGLE_BASE_URL", "google", f"gs://{gcs.BUCKET}"),
}


@pytest.fixture
def url(request, monkeypatch):
    """A new repository: in S3, and for those who ask in Azure and Google Cloud."""
    variables, address, server, place = STORES[getattr(request, "param", "S3")]
    monkeypatch.setenv(address, request.getfixturevalue(server))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return f"{place}/prefix/{next(numbers)}"


everywhere = pytest.mark.parametrize("url", STORES, indirect=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return [bundles.make(folder / f"{n}.bundle", seed=n, external=n == 1) for n in range(3)]


@functools.cache
def opened(url):
    return obstore.store.from_url(url, client_options={"allow_http": True})


def objects(url):
    found = [entry["path"] for batch in obstore.list(opened(url)) for entry in batch]
    return sorted(found)


def read(url, path):
    return bytes(obstore.get(opened(url), path).bytes())


def sync(url, folder):
    """What a server that reads the store would see."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in objects(url):
        if not path.startswith("."):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(read(url, path))
    return folder


class Watch:
    """Looks at a repository all the time, as a polling server does; `faults` are half versions."""

    def __init__(self, url, whole):
        self.looks, self.faults, self.seen = 0, [], set()
        self._url, self._whole, self._stop = url, whole, threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _look_on(self):
        store, over = opened(self._url), False
        while not over:
            over = self._stop.is_set()  # it looks once more after the last change
            for model in ("insects", "insects.tlexport-candidate"):
                self._look(store, model)
            self.looks += 1

    def _look(self, store, model):
        """A look counts where the configuration is the same before and after the files."""
        text = self._config(store, model)
        if text is None:
            listed = obstore.list_with_delimiter(store, prefix=f"{model}/")
            if listed["common_prefixes"] or listed["objects"]:
                again = obstore.list_with_delimiter(store, prefix=f"{model}/")
                names = [each["path"] for each in again["objects"]]
                if f"{model}/config.pbtxt" not in names and again["common_prefixes"]:
                    self.faults.append(f"{model} without a configuration: {again}")
            return
        found = config.parse_text(text)
        paths = {e["path"] for batch in obstore.list(store, prefix=f"{model}/") for e in batch}
        if self._config(store, model) != text:
            return
        there = sorted({int(p.split("/")[1]) for p in paths if p.split("/")[1].isdigit()})
        for number in standing.admitted(found, there):
            below = {p.split("/", 2)[2] for p in paths if p.startswith(f"{model}/{number}/")}
            self.seen.add((model, number))
            if not any(whole <= below for whole in self._whole):
                self.faults.append(f"{model} {number}: {sorted(below)}")
        named = {f"{model}/warmup/{file}" for file in repository.warmup_files(found)}
        if standing.admitted(found, there) and not named <= paths:
            self.faults.append(f"{model}: {named - paths}")

    def _config(self, store, model):
        try:
            return bytes(obstore.get(store, f"{model}/config.pbtxt").bytes()).decode()
        except FileNotFoundError:
            return None


WHOLE = (
    {"model.onnx", "tlexport.json", "golden.safetensors", "own.pbtxt", "labels.txt"},
    {"model.onnx/model.onnx", "model.onnx/model.onnx.data", "tlexport.json", "own.pbtxt"},
)


@pytest.fixture
def slowly(monkeypatch):
    """A store on a slow line: a look fits between any two changes."""
    for name in ("put", "copy", "delete"):
        real = getattr(obstore, name)

        def later(*arguments, _real=real, **more):
            time.sleep(0.02)
            return _real(*arguments, **more)

        monkeypatch.setattr(obstore, name, later)


@everywhere
def test_packages_are_never_half_there_and_a_server_serves_them(made, url, tmp_path, slowly):
    with Watch(url, WHOLE) as watch:
        for number, bundle in enumerate((*made, *made), 1):
            assert package(bundle, url).version == number
    assert watch.faults == []
    assert watch.looks > 20
    assert {("insects", 1), ("insects", 6)} <= watch.seen
    found = config.parse_text(read(url, "insects/config.pbtxt").decode())
    assert set(config.digests_of(found)) == set("123456")
    assert lint(url, LintOptions()).errors == 0
    local = sync(url, tmp_path / "synced")
    assert repository.models(local) == {"insects": [1, 2, 3, 4, 5, 6]}
    with serve(local) as serving:
        (model,) = serving.report.models
        assert model.version == "6"
        assert model.golden_max_abs < 1e-5


@pytest.fixture
def behind(url, tmp_path, monkeypatch):
    """A server whose repository is the bucket: it is fetched whenever a load is asked for.

    The embedded server is built without S3, so a folder stands in for its copy of the bucket.
    """
    folder = tmp_path / "synced"
    folder.mkdir()
    server, _ = choice.start("embedded", folder, ServeOptions(control="explicit"))
    real = Client.load

    def load(self, model):
        sync(url, folder)
        real(self, model)

    monkeypatch.setattr(Client, "load", load)
    yield server
    server.stop()


@everywhere
def test_deploys_and_rollbacks_are_never_half_there(made, url, behind, slowly):
    options = DeployOptions(server=behind.grpc, keep_on_disk=2)
    back = RollbackOptions(server=behind.grpc)
    with Watch(url, WHOLE) as watch:
        for number, bundle in enumerate(made, 1):
            report = deploy(bundle, url, options)
            assert (report.passed, report.version) == (True, number), report.fault
        assert report.removed == (1,)
        report = rollback(url, back)
        assert (report.passed, report.served, report.left) == (True, 2, ())
    assert watch.faults == []
    assert {("insects", 1), ("insects", 2), ("insects", 3)} <= watch.seen
    assert ("insects.tlexport-candidate", 2) in watch.seen
    assert not [path for path in objects(url) if "candidate" in path]
    assert {path.split("/")[1] for path in objects(url) if "/" in path} == {
        *("2", "3", "config.pbtxt", "warmup")
    }
    with pytest.raises(RepositoryError, match="served before 2"):
        rollback(url, back)
    assert behind.text().count("failed to load") == 0


def half_there(url):
    """Ensembles whose steps are not there, or not admitted, at the versions that they name."""
    found: dict = {}
    paths = {path for path in objects(url) if "/" in path}
    for path in paths:
        if path.endswith("/config.pbtxt"):
            found[path.split("/")[0]] = config.parse_text(read(url, path).decode())
    parts = [path.split("/") for path in paths]
    there = {
        name: sorted({int(part[1]) for part in parts if part[0] == name and part[1].isdigit()})
        for name in found
    }
    files = {"onnxruntime": "model.onnx", "python": "model.py"}
    for name, told in found.items():
        if told.platform != "ensemble" or not standing.admitted(told, there[name]):
            continue
        for step in told.ensemble_scheduling.step:
            member, number = found.get(step.model_name), step.model_version
            file = files[member.backend] if member else ""
            whole = f"{step.model_name}/{number}/{file}" in paths
            if not whole or number not in standing.admitted(member, there[step.model_name]):
                yield f"{name} names {step.model_name} {number}"


def test_a_pipeline_is_never_half_there(url, behind, monkeypatch):
    """Looked at after each change of the store that may take something away."""
    home, faults, looks = piped.bundle("photos"), [], []
    for name in ("put", "delete"):
        real = getattr(obstore, name)

        def watched(store, path, *arguments, _real=real, **more):
            told = _real(store, path, *arguments, **more)
            if path.endswith(("config.pbtxt", "model.py", "model.onnx")):
                faults.extend(half_there(url))
                looks.append(path)
            return told

        monkeypatch.setattr(obstore, name, watched)
    packaging = PackageOptions(pipeline=True, max_batch=piped.BATCH, threads=1)
    options = DeployOptions(server=behind.grpc, packaging=packaging)
    for number in (1, 2):
        report = deploy(home, url, options)
        assert (report.passed, report.version) == (True, number), report.fault
    report = rollback(url, RollbackOptions(server=behind.grpc))
    assert (report.passed, report.served, report.pipeline) == (True, 1, "photos_pipeline")
    assert {check.asked for check in report.checks} == {
        *("candidate", "candidate, raw files", "in service", "in service, raw files")
    }
    assert faults == []
    assert len(looks) > 30
    assert not [path for path in objects(url) if "candidate" in path]
    assert {path.split("/")[1] for path in objects(url) if path.startswith("photos_pipeline/")} == {
        *("1", "2", "config.pbtxt")
    }


def listened(monkeypatch, name, which):
    """What a function of the store's library is called with, as its argument `which`."""
    heard, real = [], getattr(obstore, name)

    def call(*arguments, **more):
        heard.append(arguments[which])
        return real(*arguments, **more)

    monkeypatch.setattr(obstore, name, call)
    return heard


@everywhere
def test_a_moved_version_is_copied_within_the_store(made, url, behind, monkeypatch):
    sent = listened(monkeypatch, "put", 1)
    copied = listened(monkeypatch, "copy", 2)
    assert deploy(made[0], url, DeployOptions(server=behind.grpc)).passed
    assert [path for path in sent if path.endswith("model.onnx")] == [
        "insects.tlexport-candidate/1/model.onnx"
    ]
    assert "insects/1/model.onnx" in copied
    model = made[0].artifact_file(made[0].artifact("onnx-fp32")).read_bytes()
    assert read(url, "insects/1/model.onnx") == model


def test_a_candidate_that_fails_leaves_the_store_as_it_was(made, url, behind, monkeypatch):
    deploy(made[0], url, DeployOptions(server=behind.grpc))
    before = {path: read(url, path) for path in objects(url) if not path.startswith(".")}
    monkeypatch.setattr(rollout, "publish", None)
    real = rollout.stage_new

    def spoilt(folder, together):
        number = real(folder, together)
        (folder / rollout.candidate_of("insects") / str(number) / "model.onnx").write_bytes(b"x")
        return number

    monkeypatch.setattr(rollout, "stage_new", spoilt)
    report = deploy(made[2], url, DeployOptions(server=behind.grpc))
    assert (report.passed, report.served) == (False, 1)
    after = {path: read(url, path) for path in objects(url) if not path.startswith(".")}
    assert after == before


@everywhere
def test_writers_at_once_take_different_numbers(made, url):
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(package, made[n].root, url) for n in range(3)]
        assert sorted(future.result().version for future in futures) == [1, 2, 3]
    for number in (1, 2, 3):
        assert f"insects/{number}/tlexport.json" in objects(url)


@everywhere
def test_the_lock_of_a_killed_writer_is_free(made, url):
    code = HELD.format(url=url)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        told = []
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(
                package, made[0].root, url, progress=lambda *step: told.append(step[0])
            )
            time.sleep(1.5)
            assert not future.done()
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert future.result().version == 1
    assert "waiting for another deploy or package" in told


def test_the_lock_of_a_dead_machine_is_taken_after_a_while(made, url, monkeypatch):
    other = {"host": "elsewhere", "pid": 1, "free": False, "beat": "x"}
    obstore.put(opened(url), lease.OBJECT, json.dumps(other).encode())
    monkeypatch.setattr(lease, "LEASE_S", 1.5)
    began = time.monotonic()
    assert package(made[0], url).version == 1
    assert time.monotonic() - began > 1.5


@everywhere
def test_a_lock_that_was_lost_and_a_configuration_that_changed_stop_the_work(made, url):
    package(made[0], url)
    mine = remote.mirrored(url, list, waiting=lambda: None)
    with pytest.raises(RepositoryError, match="as it was when this command began"), mine as work:
        path = work.folder / "insects/config.pbtxt"
        path.write_text(path.read_text() + "# mine\n")
        obstore.put(opened(url), "insects/config.pbtxt", path.read_bytes() + b"# theirs\n")
        work.push()
    assert read(url, "insects/config.pbtxt").endswith(b"# theirs\n")
    mine = remote.mirrored(url, list, waiting=lambda: None)
    with pytest.raises(RepositoryError, match="the lock of the repository"), mine as work:
        obstore.put(opened(url), lease.OBJECT, b"{}")
        work.lease._lost = not work.lease._write(work.lease._mark)
        (work.folder / "insects/config.pbtxt").write_text("# mine\n")
        work.push()


def test_another_signature_is_refused_in_a_store_as_well(made, url, tmp_path, monkeypatch):
    package(made[0], url)
    monkeypatch.setattr(bundles, "LABELS", ("ant", "bee", "dove"))
    other = bundles.make(tmp_path / "other.bundle")
    with pytest.raises(RepositoryError, match="the labels of 'insects'"):
        package(other, url)
    assert package(other, url, PackageOptions(allow_signature_change=True)).version == 2
    assert read(url, "insects/labels.txt") == b"ant\nbee\ndove\n"


def test_an_ensemble_comes_after_its_steps(url, monkeypatch):
    sent = listened(monkeypatch, "put", 1)
    with remote.mirrored(url, list, waiting=lambda: None) as work:
        for name, platform in (("a_pipeline", 'platform: "ensemble"'), ("b", 'backend: "x"')):
            (work.folder / name / "1").mkdir(parents=True)
            (work.folder / name / "1/model.onnx").write_bytes(b"x")
            (work.folder / name / "config.pbtxt").write_text(platform)
        work.push()
        (work.folder / "b/config.pbtxt").unlink()
        shutil.rmtree(work.folder / "b/1")
        work.push()
    assert sent[-3:] == ["a_pipeline/config.pbtxt", "b/config.pbtxt", lease.OBJECT]
    assert sent.index("b/config.pbtxt") < sent.index("a_pipeline/1/model.onnx")
    assert [path for path in objects(url) if path.startswith("b/")] == []


@everywhere
def test_a_large_model_is_put_in_parts_and_comes_back_whole(url):
    content = os.urandom(12_000_000)
    with remote.mirrored(url, list, waiting=lambda: None) as work:
        (work.folder / "large/1").mkdir(parents=True)
        (work.folder / "large/1/model.onnx").write_bytes(content)
        (work.folder / "large/config.pbtxt").write_text('backend: "onnxruntime"')
        work.push()
    with remote.mirrored(url, list, whole=True) as work:
        assert (work.folder / "large/1/model.onnx").read_bytes() == content


def test_wrong_places(made, url, tmp_path, monkeypatch):
    with pytest.raises(RepositoryError, match=r"to work in the repository 's3://no-such-bucket"):
        package(made[0], "s3://no-such-bucket/x")
    for place in ("ftp://somewhere/x", "s3://", "s3:///"):
        with pytest.raises(OptionError, match="s3://BUCKET/PREFIX"):
            package(made[0], place)
    with pytest.raises(OptionError, match="a folder for --fix"):
        lint(url, LintOptions(fix=True))
    with pytest.raises(RepositoryError, match="a folder to serve here"):
        serve(url)
    with pytest.raises(OptionError, match="--repository with a folder"):
        RunOptions(repository=url)
    assert remote.url_of(Path(url)) == url
    assert remote.url_of(tmp_path) is None
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingDependency, match=r"tlexport\[remote\]"):
        package(made[0], url)


def test_wrong_places_in_azure(made, azure, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azure)
    with pytest.raises(RepositoryError, match="AZURE_STORAGE_ACCOUNT_NAME") as caught:
        package(made[0], "az://models/x")
    assert "Account must be specified" in caught.value.got
    with pytest.raises(OptionError, match="as://ACCOUNT/CONTAINER/PREFIX"):
        package(made[0], "as://models")
    for name, value in azurite.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RepositoryError) as caught:
        package(made[0], "az://no-such-container/x")
    assert caught.value.got == "ContainerNotFound (404 Not Found)"
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    with pytest.raises(RepositoryError) as caught:
        package(made[0], "az://models/x")
    assert caught.value.got == "AuthorizationFailure (403 Forbidden)"
    assert "AZURE_STORAGE_ACCOUNT_KEY" in caught.value.fix


def test_wrong_places_in_google_cloud(made, google, monkeypatch):
    monkeypatch.setenv("GOOGLE_BASE_URL", google)
    for name, value in gcs.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RepositoryError, match="GOOGLE_APPLICATION_CREDENTIALS") as caught:
        package(made[0], "gs://no-such-bucket/x")
    assert caught.value.got == "NoSuchBucket (404 Not Found)"


def test_azure_as_triton_writes_it(made, azure, monkeypatch):
    """The account stands in the URL; `lint` and a later `package` find what was put there."""
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azure)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azurite.KEY)
    place = f"as://{azurite.ACCOUNT}/{azurite.CONTAINER}/as/written"
    assert [package(made[0], place).version for _ in range(2)] == [1, 2]
    assert lint(place, LintOptions()).errors == 0
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", azurite.ACCOUNT)
    assert lint(f"az://{azurite.CONTAINER}/as/written", LintOptions()).errors == 0
