from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from serving import bundles, small_models
from serving.processes import until
from serving.traffic import Traffic

from tlexport.bundle import Bundle, digest_of, read_tensors, write_tensors
from tlexport.errors import (
    BundleError,
    OptionError,
    ParityError,
    RepositoryError,
    ServerError,
    TlexportError,
)
from tlexport.options import DeployOptions, PackageOptions, RollbackOptions, ServeOptions
from tlexport.publishing import change, gate
from tlexport.reports import DeployReport
from tlexport.serving import choice, config, repository, rollout
from tlexport.serving.client import Client, parse
from tlexport.serving.standing import admitted
from tlexport.stages.deploy import deploy
from tlexport.stages.package import package
from tlexport.stages.rollback import rollback

KILLED = """
import os, signal, sys
from tlexport.options import DeployOptions
from tlexport.serving import rollout
from tlexport.serving.client import Client
from tlexport.stages.deploy import deploy

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

real = Client.load
if {when!r} == "while it is a candidate":
    Client.unload = lambda self, model: None
    def load(self, model):
        real(self, model)
        die()
    Client.load = load
elif {when!r} == "between version and configuration":
    rollout._describe = die
else:
    Client.load = lambda self, model: real(self, model) if "candidate" in model else die()
deploy({bundle!r}, {place!r}, DeployOptions(server={server!r}))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Bundles by seed."""
    folder = tmp_path_factory.mktemp("made")
    return [bundles.make(folder / f"{seed}.bundle", seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def running(tmp_path_factory, made):
    """A server on a repository that holds a model which no test uses: (place, server)."""
    place = tmp_path_factory.mktemp("deploy") / "models"
    small_models.lay(place, "double", small_models.double(), small_models.plain())
    server, _ = choice.start("embedded", place, ServeOptions(control="explicit"))
    yield place, server
    server.stop()


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """The embedded server takes a second to unload a model: only one test waits for it."""
    monkeypatch.setattr(change, "GONE_S", 0.0)


@pytest.fixture
def place(running):
    return running[0]


@pytest.fixture
def server(running, place):
    """The server; the model is taken away after each test."""
    yield running[1]
    client = Client(parse(running[1].grpc), 30)
    for name in ("insects", rollout.candidate_of("insects")):
        client.unload(name)
    until(lambda: not serving(running[1]))
    client.close()
    for name in ("insects", rollout.candidate_of("insects"), "insects_pipeline"):
        shutil.rmtree(place / name, ignore_errors=True)


def options(server, **more):
    packaging = PackageOptions(
        **{k: more.pop(k) for k in tuple(more) if k in PackageOptions.__struct_fields__}
    )
    return DeployOptions(server=server.grpc, packaging=packaging, **more)


def serving(server, name="insects"):
    """Versions that are ready or on their way out."""
    client = Client(parse(server.grpc), 30)
    try:
        entries = [e for e in client.models() if e["name"] == name]
    finally:
        client.close()
    return [int(e["version"]) for e in entries if e.get("state") in ("READY", "UNLOADING")]


def in_service(server):
    return change.Change(server.grpc, "insects", 30).served("insects")


def answer(server):
    client = Client(parse(server.grpc), 30)
    entry = client.input("images", (1, 8, 8, 3), "UINT8")
    entry.set_data_from_numpy(bundles.images(1))
    try:
        return client.infer("insects", "", [entry], [client.output("logits")]).as_numpy("logits")
    finally:
        client.close()


def serves(server, seed):
    return np.allclose(answer(server), bundles.answers(bundles.images(1), seed), atol=1e-5)


def nothing_left(place):
    left = [*place.parent.rglob(".tlexport-staging-*"), *place.glob("*candidate*")]
    return not left


def wrong(folder, seed=1):
    """A bundle that says it is proven, whose file is another network's."""
    bundle = bundles.make(folder, seed=seed)
    artifact = bundle.artifact("onnx-fp32")
    file = bundle.artifact_file(artifact)
    onnx.save(bundles.network(seed + 50), file)
    record = file.parent / "artifact.json"
    told = json.loads(record.read_text())
    told["sha256"] = digest_of(file.parent, artifact.files)
    record.write_text(json.dumps(told))
    bundle.write_report("parity-onnx-fp32", bundles.parity(bundle))
    return bundle


def test_a_first_version_then_the_next_then_back(made, place, server):
    first = deploy(made[0], place, options(server))
    assert (first.passed, first.version, first.before, first.served) == (True, 1, None, 1)
    assert serves(server, 0)
    second = deploy(made[1], place, options(server))
    assert (second.version, second.before, second.served) == (2, 1, 2)
    assert {check.batch for check in second.checks} == {1, 2, 6}
    assert {check.asked for check in second.checks} == {"candidate", "in service"}
    assert made[1].report("deploy", DeployReport) == second
    assert serves(server, 1)
    back = rollback(place, RollbackOptions(server=f"http://{server.http}", name="insects"))
    assert (back.passed, back.before, back.version, back.left) == (True, 2, 1, ())
    assert serves(server, 0)
    assert repository.versions(place / "insects") == [1, 2]
    assert nothing_left(place)


def test_a_candidate_is_gone_before_the_version_loads_in_its_place(
    made, place, server, monkeypatch
):
    monkeypatch.setattr(change, "GONE_S", 30.0)
    deploy(made[0], place, options(server))
    states = []
    real = Client.load

    def load(self, model):
        if model == "insects":
            states.append(serving(server, rollout.candidate_of("insects")))
        real(self, model)

    monkeypatch.setattr(Client, "load", load)
    assert deploy(made[1], place, options(server)).passed
    assert states == [[]]


def test_a_number_is_never_given_again_and_rolled_back_versions_are_passed_over(
    made, place, server
):
    for seed in (0, 1, 2):
        deploy(made[seed], place, options(server))
    back = RollbackOptions(server=server.grpc, name="insects")
    assert rollback(place, back).served == 2
    assert deploy(made[0], place, options(server)).version == 4
    assert rollback(place, back).served == 2
    assert rollback(place, back).served == 1
    assert serves(server, 0)
    with pytest.raises(RepositoryError, match="served before 1") as caught:
        rollback(place, back)
    assert "versions there are: 1, 2, 3, 4" in caught.value.got
    shutil.rmtree(place / "insects/4")
    assert package(made[1], place, PackageOptions(keep_versions=2)).version == 5
    assert rollout.standing(place / "insects").served == (1, 5)
    found = config.parse(place / "insects/config.pbtxt")
    assert admitted(found, repository.versions(place / "insects")) == [1, 5], "2 was rolled back"


def test_a_version_that_answers_wrong_never_serves(made, place, server, tmp_path):
    deploy(made[0], place, options(server))
    before = (place / "insects/config.pbtxt").read_bytes()
    bad = wrong(tmp_path / "bad.bundle")
    report = deploy(bad, place, options(server))
    assert (report.passed, report.served, report.fault.kind) == (False, 1, "ParityError")
    assert "'logits' is off by" in report.fault.got
    assert {check.asked for check in report.checks} == {"candidate"}
    assert bad.report("deploy", DeployReport) == report
    assert (place / "insects/config.pbtxt").read_bytes() == before
    assert repository.versions(place / "insects") == [1]
    assert serves(server, 0)
    assert nothing_left(place)
    until(lambda: not serving(server, rollout.candidate_of("insects")))


def test_a_version_that_fails_in_its_place_is_taken_back(made, place, server, monkeypatch):
    deploy(made[0], place, options(server))
    real = gate.ArrayQuestion.ask

    def otherwise(question, where, model, *rest):
        found = real(question, where, model, *rest)
        if model == "insects":
            raise ServerError("an answer", got="none", fix="none")
        return found

    monkeypatch.setattr(gate.ArrayQuestion, "ask", otherwise)
    report = deploy(made[1], place, options(server))
    assert (report.passed, report.served, report.version) == (False, 1, 2)
    assert serves(server, 0)
    assert in_service(server) == 1
    assert repository.versions(place / "insects") == [1]
    monkeypatch.undo()
    assert deploy(made[1], place, options(server)).version == 3, "2 was seen by clients"


def test_a_first_version_that_fails_in_its_place_leaves_no_model(made, place, server, monkeypatch):
    real = Client.load

    def load(self, model):
        real(self, model)
        if model == "insects":
            raise ServerError("a load", got="none", fix="none")

    monkeypatch.setattr(Client, "load", load)
    report = deploy(made[1], place, options(server))
    assert (report.passed, report.served) == (False, None)
    assert not (place / "insects").exists()
    until(lambda: not serving(server))


def test_a_file_that_the_server_refuses_is_told_in_its_words(made, place, server, monkeypatch):
    deploy(made[0], place, options(server))
    real = rollout.stage_new

    def spoilt(folder, new):
        number = real(folder, new)
        (folder / rollout.candidate_of("insects") / str(number) / "model.onnx").write_bytes(b"x")
        return number

    monkeypatch.setattr(rollout, "stage_new", spoilt)
    report = deploy(made[1], place, options(server))
    assert report.fault.kind == "ServerError"
    assert "Protobuf parsing failed" in report.fault.got
    assert "\n" not in report.fault.got
    assert "not a whole ONNX file" in report.fault.fix
    assert serves(server, 0)
    assert nothing_left(place)


def test_another_signature_is_refused_unless_allowed_and_rollback_brings_its_labels(
    made, place, server, tmp_path, monkeypatch
):
    deploy(made[0], place, options(server))
    monkeypatch.setattr(bundles, "LABELS", ("ant", "bee", "dove"))
    other = bundles.make(tmp_path / "other.bundle", seed=1)
    with pytest.raises(RepositoryError, match="the labels of 'insects'"):
        deploy(other, place, options(server))
    assert serves(server, 0)
    assert deploy(other, place, options(server, allow_signature_change=True)).passed
    assert classes(server) == {"ant", "bee", "dove"}
    assert rollback(place, RollbackOptions(server=server.grpc, name="insects")).passed
    assert classes(server) == {"ant", "bee", "crow"}
    found = config.parse(place / "insects/config.pbtxt")
    for file in repository.warmup_files(found):
        assert (place / "insects/warmup" / file).read_bytes() == bundles.images()[:1].tobytes()


def classes(server):
    import tritonclient.grpc as grpc

    with grpc.InferenceServerClient(server.grpc) as client:
        entry = grpc.InferInput("images", (1, 8, 8, 3), "UINT8")
        entry.set_data_from_numpy(bundles.images(1))
        asked = grpc.InferRequestedOutput("logits", class_count=3)
        told = client.infer("insects", [entry], outputs=[asked]).as_numpy("logits")
        return {entry.decode().split(":")[2] for entry in told.ravel()}


def test_packaged_versions_are_taken_into_account(made, place, server):
    package(made[0], place)
    package(made[1], place)
    assert deploy(made[2], place, options(server)).version == 3
    back = RollbackOptions(server=server.grpc, name="insects")
    assert rollback(place, back).served == 2
    assert package(made[0], place).version == 4  # the server does not know of it yet
    report = deploy(made[2], place, options(server, keep_on_disk=2))
    assert (report.version, report.before, report.removed) == (5, 2, (1, 3, 4))
    assert "named version 4, the server serves 2" in report.notes[0]
    assert rollback(place, back).served == 2


def test_several_versions_may_stay_loaded(made, place, server):
    for seed in (0, 1, 2):
        deploy(made[seed], place, options(server, keep_versions=2))
    until(lambda: sorted(serving(server)) == [2, 3])
    assert rollback(place, RollbackOptions(server=server.grpc, name="insects")).served == 2
    until(lambda: sorted(serving(server)) == [1, 2])
    assert serves(server, 1)


def test_a_rollback_to_a_version_that_answers_wrong_changes_nothing(made, place, server):
    deploy(made[0], place, options(server))
    deploy(made[1], place, options(server))
    path = place / "insects/1/golden.safetensors"
    golden = read_tensors(path)
    golden["output:logits"] = golden["output:logits"] + 1
    write_tensors(path, golden)
    report = rollback(place, RollbackOptions(server=server.grpc, name="insects"))
    assert (report.passed, report.served, report.fault.kind) == (False, 2, "ParityError")
    assert serves(server, 1)
    assert rollout.standing(place / "insects").served == (1, 2)


def test_requests_meanwhile_are_all_answered_right(made, place, server):
    deploy(made[0], place, options(server))
    seeds = {1: 0}
    golden = {seed: bundles.answers(bundles.images(1), seed) for seed in range(3)}

    def right(version, told):
        return np.allclose(told, golden[seeds.get(version, version % 2)], atol=1e-5)

    with Traffic(server.grpc, server.http, bundles.images(1), right) as traffic:
        for version in range(2, 8):
            assert deploy(made[version % 2], place, options(server)).version == version
        for version in (6, 5):
            back = rollback(place, RollbackOptions(server=server.grpc, name="insects"))
            assert back.served == version
    assert traffic.failures == []
    assert traffic.versions == set(range(1, 8))
    assert traffic.asked > 200


@pytest.mark.parametrize(
    "when",
    [
        "while it is a candidate",
        "between version and configuration",
        "before the change loads",
    ],
)
def test_a_killed_deploy_leaves_the_old_version_and_the_next_one_clears_up(
    made, place, server, when
):
    deploy(made[0], place, options(server))
    code = KILLED.format(when=when, bundle=str(made[1].root), place=str(place), server=server.grpc)
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()
    assert serves(server, 0)
    if when != "before the change loads":
        assert rollout.standing(place / "insects").current == 1, "a restarted server serves it"
    report = deploy(made[2], place, options(server))
    assert (report.passed, report.before) == (True, 1)
    assert serves(server, 2)
    assert nothing_left(place)
    assert rollback(place, RollbackOptions(server=server.grpc, name="insects")).served == 1
    until(lambda: not serving(server, rollout.candidate_of("insects")))


def test_deploys_and_packages_at_once_go_one_after_another(made, place, server):
    deploy(made[0], place, options(server))
    told = []
    with ThreadPoolExecutor(3) as pool:
        deploys = [
            pool.submit(
                deploy, made[1].root, place, options(server), progress=lambda *s: told.append(s[0])
            )
            for _ in range(2)
        ]
        packed = pool.submit(package, made[2].root, place)
        numbers = [future.result().version for future in (*deploys, packed)]
    assert sorted(numbers) == [2, 3, 4]
    assert all(future.result().passed for future in deploys)
    assert repository.versions(place / "insects") == [1, 2, 3, 4]
    assert "waiting for another deploy or package" in told
    assert serves(server, 1)


def test_a_load_that_takes_too_long_says_so(made, place, server, monkeypatch):
    deploy(made[0], place, options(server))
    slow(monkeypatch, 4)
    report = deploy(made[1], place, options(server, timeout_s=1.0))
    assert report.fault.kind == "ServerError"
    assert "within 1 s" in report.fault.expected
    assert "--timeout-s" in report.fault.fix
    assert serves(server, 0)
    assert any("the next deploy unloads it" in note for note in report.notes)
    monkeypatch.undo()
    assert deploy(made[1], place, options(server)).passed
    assert serves(server, 1)


def slow(monkeypatch, seconds):
    """Have every candidate be a Python model that sleeps when it is loaded."""
    real = rollout.stage_new

    def staged(folder, new):
        number = real(folder, new)
        candidate = folder / rollout.candidate_of("insects")
        text = (candidate / "config.pbtxt").read_text()
        (candidate / "config.pbtxt").write_text(text.replace('"onnxruntime"', '"python"'))
        (candidate / str(number) / "model.py").write_text(
            "import time\nclass TritonPythonModel:\n    def initialize(self, args):\n"
            f"        time.sleep({seconds})\n    def execute(self, requests):\n        return []\n"
        )
        return number

    monkeypatch.setattr(rollout, "stage_new", staged)


def test_a_disk_that_is_full_when_the_version_is_published(made, place, server, monkeypatch):
    deploy(made[0], place, options(server))
    real = rollout.write_atomic

    def full(path, data):
        if path.name == "config.pbtxt" and path.parent == place / "insects" and b": 2" in data:
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(rollout, "write_atomic", full)
    with pytest.raises(RepositoryError, match="No space left"):
        deploy(made[1], place, options(server))
    monkeypatch.undo()
    assert repository.versions(place / "insects") == [1]
    assert rollout.standing(place / "insects").current == 1
    assert nothing_left(place)
    assert serves(server, 0)


def test_a_server_that_is_gone_in_the_middle(made, tmp_path, monkeypatch):
    place = tmp_path / "models"
    package(made[0], place)
    server, _ = choice.start("embedded", place, ServeOptions(control="explicit"))
    try:
        real = rollout.publish

        def publish(*arguments):
            found = real(*arguments)
            os.kill(server.pid, signal.SIGTERM)
            server._process.wait()
            return found

        monkeypatch.setattr(rollout, "publish", publish)
        report = deploy(made[1], place, options(server, timeout_s=5.0))
    finally:
        server.stop()
    assert report.fault.kind == "ServerError"
    assert rollout.standing(place / "insects").current == 1
    assert repository.versions(place / "insects") == [1]
    assert nothing_left(place)
    assert Bundle(made[1].root).report("deploy", DeployReport).fault == report.fault


def test_other_repositories_servers_and_ways_are_told_apart(made, place, server, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    report = deploy(made[0], elsewhere, options(server))
    assert report.fault.kind == "ServerError"
    assert "the very repository that the server serves" in report.fault.fix
    assert not elsewhere.exists()
    deploy(made[0], place, options(server))
    for seed, got in ((None, "no such version"), (1, "another version 1")):
        if seed is not None:
            package(made[seed], elsewhere)
        with pytest.raises(RepositoryError, match="version 1 of 'insects'") as caught:
            deploy(made[2], elsewhere, options(server))
        assert caught.value.got == got
    with pytest.raises(ServerError, match="a Triton server that speaks gRPC"):
        deploy(made[0], place, DeployOptions(server="127.0.0.1:1"))
    with pytest.raises(OptionError, match="HOST:PORT"):
        deploy(made[0], place, DeployOptions(server="nowhere"))
    for error, kept in ((RepositoryError, "nobody"), (OptionError, None)):
        with pytest.raises(error, match="a model"):
            rollback(place, RollbackOptions(server=server.grpc, name=kept))


def test_what_is_not_proven_is_not_deployed(made, place, server, tmp_path):
    for bundle, error in (
        (bundles.make(tmp_path / "a", proven=False), ParityError),
        (bundles.make(tmp_path / "b", name="two words"), OptionError),
    ):
        with pytest.raises(error):
            deploy(bundle, place, options(server))
    (place / "insects_pipeline").mkdir()
    (place / "insects_pipeline/config.pbtxt").write_text(
        'platform: "ensemble"\noutput { name: "label" data_type: TYPE_STRING dims: [2] }\n'
    )
    with pytest.raises(BundleError, match="the golden samples as they came"):
        deploy(made[0], place, options(server))
    assert not (place / "insects").exists()


@pytest.mark.parametrize("control", ["none", "poll"])
def test_a_server_that_follows_by_itself_is_refused(made, tmp_path, control):
    place = tmp_path / "models"
    package(made[0], place)
    server, _ = choice.start("embedded", place, ServeOptions(control=control))
    try:
        for refused in (
            lambda: deploy(made[1], place, options(server)),
            lambda: rollback(place, RollbackOptions(server=f"http://{server.http}")),
        ):
            with pytest.raises(ServerError, match="loads models when it is told to") as caught:
                refused()
            assert "--control explicit" in caught.value.fix
    finally:
        server.stop()
    assert repository.versions(place / "insects") == [1]


def test_an_interrupted_deploy_is_cleared_away(made, place, server, monkeypatch):
    deploy(made[0], place, options(server))
    real = Client.load
    loaded = threading.Event()

    def load(self, model):
        real(self, model)
        if model == "insects" and not loaded.is_set():
            loaded.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(Client, "load", load)
    with pytest.raises(KeyboardInterrupt):
        deploy(made[1], place, options(server))
    assert in_service(server) == 1
    assert repository.versions(place / "insects") == [1]
    assert nothing_left(place)


def test_errors_have_the_exit_codes_of_their_kind(made, place, server, capsys, tmp_path):
    from tlexport.cli import main

    def run(*line):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, line), "--server", server.grpc])
        return ended.value.code, capsys.readouterr()

    code, told = run("deploy", made[0].root, place)
    assert code == 0
    assert "in service: version 1, before: none" in told.out
    code, told = run("deploy", wrong(tmp_path / "bad.bundle").root, place, "--json")
    assert code == 3
    assert json.loads(told.out)["fault"]["kind"] == "ParityError"
    assert "to answer the golden samples" in told.err
    assert run("deploy", made[1].root, place)[0] == 0
    code, told = run("rollback", place, "--name", "insects")
    assert code == 0
    assert "insects back to version 1" in told.out
    assert "versions to go back to from here: none" in told.out
    assert run("rollback", place, "--name", "insects")[0] == 8
    assert issubclass(RepositoryError, TlexportError)
