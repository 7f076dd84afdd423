"""deploy and rollback of a model with a pipeline around it: all four or none."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import piped
import pytest
from serving.processes import until
from serving.traffic import Traffic

from tlexport.bundle import Bundle
from tlexport.errors import RepositoryError, ServerError
from tlexport.options import (
    DeployOptions,
    PackageOptions,
    PredictOptions,
    RollbackOptions,
    ServeOptions,
)
from tlexport.publishing.raw_gate import RawQuestion
from tlexport.serving import choice, config, pipeline, repository, rollout
from tlexport.serving.client import Client, parse
from tlexport.serving.standing import admitted
from tlexport.stages.deploy import deploy
from tlexport.stages.package import package
from tlexport.stages.predict import predict
from tlexport.stages.rollback import rollback

FOUR = pipeline.whole("photos")
LAST = FOUR[-1]

KILLED = """
import os, signal
from tlexport.options import DeployOptions, PackageOptions
from tlexport.serving.client import Client
from tlexport.stages.deploy import deploy

real = Client.load
def load(self, model):
    if model == "photos_pipeline":
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, model)
Client.load = load
options = DeployOptions(server={server!r}, packaging=PackageOptions(max_batch=4, threads=1))
deploy({bundle!r}, {place!r}, options)
"""


class Line:
    """One server on one repository, where photos are in service; each test goes on from there."""

    def __init__(self, place, server, made):
        self.place, self.server, self.made = place, server, made
        self.bundles = {}
        self.first = self.deploy(0, pipeline=True)

    def deploy(self, which, **more):
        report = deploy(self.made[which], self.place, self.options(**more))
        self.bundles[report.version] = which
        return report

    def options(self, **more):
        packaging = PackageOptions(max_batch=piped.BATCH, threads=1, **more)
        return DeployOptions(server=self.server.grpc, packaging=packaging)

    def rollback(self, name="photos"):
        return rollback(self.place, RollbackOptions(server=self.server.grpc, name=name))

    @property
    def number(self):
        return rollout.standing(self.place / LAST).current

    def ready(self):
        """Model -> its versions that are ready or on their way out."""
        client = Client(parse(self.server.grpc), 30)
        try:
            entries = [e for e in client.models() if e.get("state") in ("READY", "UNLOADING")]
        finally:
            client.close()
        return {
            name: sorted(int(e["version"]) for e in entries if e["name"] == name) for name in FOUR
        }

    def settled(self, last, *steps):
        """Whether the server has these versions of the steps, that of the ensemble and no other."""
        return self.ready() == {name: [last] if name == LAST else [*steps, last] for name in FOUR}

    def content(self):
        files = [p for p in self.place.rglob("*") if p.is_file() and p.name != ".tlexport.lock"]
        return {str(path.relative_to(self.place)): path.read_bytes() for path in files}

    def standings(self):
        return {rollout.standing(self.place / name).served for name in FOUR}

    def is_clean(self):
        left = [*self.place.parent.rglob(".tlexport-staging-*"), *self.place.glob("*candidate*")]
        return not left


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    made = [Bundle(piped.bundle("photos", seed)) for seed in (0, 1)]
    place = tmp_path_factory.mktemp("deploy") / "models"
    place.mkdir()
    server, _ = choice.start("embedded", place, ServeOptions(control="explicit"))
    yield Line(place, server, made)
    server.stop()


def test_the_first_version(line):
    found = line.first
    assert (found.passed, found.version, found.before, found.pipeline) == (True, 1, None, LAST)
    assert {(check.asked, check.samples) for check in found.checks} == {
        *(("candidate", 6), ("candidate, raw files", 6)),
        *(("in service", 6), ("in service, raw files", 6)),
    }
    raw = [check for check in found.checks if "raw" in check.asked]
    assert {check.batch for check in raw} == {1, 2, 4}
    assert max(check.max_abs for check in raw) < 1e-5
    steps = config.parse(line.place / LAST / "config.pbtxt").ensemble_scheduling.step
    assert {step.model_name for step in steps} == set(FOUR[:3])
    assert line.is_clean()


def spoil_preprocess(place, number, made):
    path = place / rollout.candidate_of(FOUR[0]) / str(number) / "step.json"
    told = json.loads(path.read_text())
    told["numbers"]["mode"] = "squash"
    path.write_text(json.dumps(told))


def spoil_weights(place, number, made):
    file = made[0].artifact_file(made[0].artifact("onnx-fp32"))
    shutil.copyfile(file, place / rollout.candidate_of("photos") / str(number) / "model.onnx")


@pytest.mark.parametrize("spoil", [spoil_preprocess, spoil_weights])
def test_a_bad_candidate_leaves_all_as_it_was(line, monkeypatch, spoil):
    before, then = line.content(), line.ready()
    real = rollout.stage_new

    def stage(folder, together):
        number = real(folder, together)
        spoil(folder, number, line.made)
        return number

    monkeypatch.setattr(rollout, "stage_new", stage)
    report = line.deploy(1)
    assert (report.passed, report.served, report.fault.kind) == (False, 1, "ParityError")
    if spoil is spoil_preprocess:
        assert "is told as" in report.fault.got
        assert all(check.passed for check in report.checks if "raw" not in check.asked)
    assert line.content() == before
    until(lambda: line.ready() == then)
    assert line.is_clean()


def test_a_fault_in_service_has_all_go_back_and_requests_see_nothing(line, monkeypatch):
    before, number = line.content(), line.number
    real = RawQuestion.ask

    def ask(question, where, model, *rest):
        if model == LAST:
            raise ServerError("an answer", got="none", fix="none")
        return real(question, where, model, *rest)

    monkeypatch.setattr(RawQuestion, "ask", ask)
    item = line.made[0].raw(line.made[0].manifest.golden[0]).read_bytes()
    addresses, of = (line.server.grpc, line.server.http), (LAST, "raw", "probability")
    with Traffic(*addresses, piped.column(item), lambda *_: True, 1, of) as traffic:
        report = line.deploy(1)
    assert (report.passed, report.served, report.fault.got) == (False, number, "none")
    assert traffic.failures == []
    assert traffic.versions == {number, report.version}
    until(lambda: line.settled(number))
    after = line.content()
    assert {name for name in before if "config" not in name} == {
        name for name in after if "config" not in name
    }
    assert line.standings() == {(number,)}
    assert line.number == number
    assert line.is_clean()


def test_all_go_forth_and_back_under_traffic(line, tmp_path):
    number = line.number
    home = line.made[0]
    item, images = home.raw(home.manifest.golden[0]), home.golden().inputs["images"][:1]
    golden = [
        predict(each.root, [item], PredictOptions(top=1)).predictions[0].probabilities
        for each in line.made
    ]
    told = {}

    def right(version, answer):
        told.setdefault(version, answer.ravel())
        return np.allclose(answer, told[version], atol=1e-5)

    addresses = (line.server.grpc, line.server.http)
    raw, arrays = (LAST, "raw", "probability"), ("photos", "images", "logits")
    column = piped.column(item.read_bytes())
    with (
        Traffic(*addresses, column, right, 2, raw) as ensemble,
        Traffic(
            *addresses, images, lambda _, answer: np.isfinite(answer).all(), 1, arrays
        ) as model,
    ):
        second = line.deploy(1)
        assert (second.passed, second.before) == (True, number), second.fault
        until(lambda: line.settled(second.version, number))
        back = line.rollback()
        assert (back.passed, back.served, back.pipeline) == (True, number, LAST), back.fault
        until(lambda: line.settled(number))
    assert ensemble.failures == model.failures == []
    assert ensemble.versions == model.versions == {number, second.version}
    assert np.allclose(told[number], golden[line.bundles[number]], atol=1e-5)
    assert np.allclose(told[second.version], golden[1], atol=1e-5)
    assert {check.samples for check in back.checks} == {4}
    assert line.standings() == {(number,)}
    assert line.is_clean()
    with pytest.raises(RepositoryError, match=f"'{LAST}' that served before {number}"):
        line.rollback(FOUR[0])
    with pytest.raises(RepositoryError, match="a model 'nobody'"):
        line.rollback("nobody")


def test_a_killed_deploy_is_cleared_up_and_packages_take_turns(line):
    """Killed when the steps are changed and the ensemble is not."""
    number = line.number
    code = KILLED.format(
        bundle=str(line.made[1].root), place=str(line.place), server=line.server.grpc
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()
    killed = line.number
    assert killed > number
    assert line.ready() == {n: [number] if n == LAST else [number, killed] for n in FOUR}
    with ThreadPoolExecutor(2) as pool:
        deployed = pool.submit(line.deploy, 1)
        until(lambda: [*line.place.glob("*candidate*")])
        packed = pool.submit(package, line.made[0].root, line.place, line.options().packaging)
        report, packaged = deployed.result(), packed.result()
    assert (report.passed, report.before) == (True, number), report.fault
    assert report.notes == (
        f"the repository named version {killed}, the server serves {number}: "
        f"{killed} counts as one that never served",
    )
    assert packaged.version == report.version + 1
    until(lambda: line.settled(report.version, number))
    assert line.is_clean()
    for name in FOUR:
        found = config.parse(line.place / name / "config.pbtxt")
        numbers = repository.versions(line.place / name)
        assert killed in numbers
        assert admitted(found, numbers) == [report.version, packaged.version][name == LAST :]
    assert line.rollback().served == number, "what was packaged never served"
