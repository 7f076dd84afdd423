"""The training job: legal by the schemas, and a command that the real parsers take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import crds
import kubernetes_validate
import pytest
import yaml
from torch.distributed import run as torchrun

from tlexport.cli._flags import record
from tlexport.cli.train import command as train
from tlexport.errors import OptionError
from tlexport.options import AdaptOptions, DataOptions, ManifestOptions, TrainOptions
from tlexport.stages.manifests import manifests

OURS = Path(__file__).parents[2] / "model_repository"
IMAGE = "registry.example/team/training:1"


def made(output: Path, **more: Any) -> dict[str, Any]:
    """What the command writes for the cluster, by the file's name."""
    given = {"name": "digits", "storage_uri": "s3://models/digits", "output": str(output)}
    manifests(OURS, ManifestOptions(**given | {"training_image": IMAGE} | more))
    files = [*output.glob("kubernetes/*.yaml"), *output.glob("training-job/*.yaml")]
    return {path.stem: yaml.safe_load(path.read_text()) for path in files}


def pod_of(found: dict[str, Any]) -> dict[str, Any]:
    return found["training"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"training_nodes": 1, "training_devices": 3, "namespace": "ml"},
        {"training_nodes": 4, "training_devices": 8, "training_gpu": True, "name": "x" * 40},
    ],
)
def test_kubernetes_takes_the_job_and_its_service(tmp_path, more):
    found = made(tmp_path, **more)
    for name, kind in (("training", "Job"), ("training-service", "Service")):
        assert found[name]["kind"] == kind
        assert found[name]["metadata"]["namespace"] == more.get("namespace", "default")
        for version in ("1.28", crds.KUBERNETES):
            kubernetes_validate.validate(found[name], version, strict=True)
    found["training"]["spec"]["completionmode"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found["training"], crds.KUBERNETES, strict=True)


@pytest.mark.parametrize(("nodes", "devices"), [(1, 1), (2, 1), (3, 4)])
def test_torchrun_and_tlexport_take_the_command(tmp_path, nodes, devices):
    found = made(tmp_path, training_nodes=nodes, training_devices=devices)
    job, service, pod = found["training"], found["training-service"], pod_of(found)
    launcher, *words = pod["containers"][0]["command"]
    assert launcher == "torchrun"
    config, _, given = torchrun.config_from_args(torchrun.get_args_parser().parse_args(words))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (nodes, nodes, devices)
    assert config.rdzv_backend == "c10d"
    host, port = config.rdzv_endpoint.split(":")
    first, subdomain = host.split(".")
    assert first == f"{job['metadata']['name']}-0"  # what an indexed job calls its first pod
    assert subdomain == pod["subdomain"] == service["metadata"]["name"]
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert config.rdzv_configs["read_timeout"] == config.rdzv_configs["join_timeout"] == "600"

    after = given.index("tlexport")
    assert given[after - 1 : after + 2] == ["-m", "tlexport", "train"]
    values = train.make_context("train", list(given[after + 2 :])).params
    assert values.pop("data") == Path("/data")
    assert values.pop("output") == Path("/output/digits.bundle")
    options = record(
        TrainOptions,
        values,
        data=record(DataOptions, values),
        adapt=record(AdaptOptions, values),
    )
    assert options.adapt.unfreeze == "all"
    assert (options.adapt.nodes, options.adapt.devices) == (nodes, devices)


def test_pods_and_processes_agree(tmp_path):
    found = made(
        tmp_path,
        training_nodes=3,
        training_devices=2,
        training_cores=5,
        training_memory_mib=2048,
        training_gpu=True,
    )
    spec, pod = found["training"]["spec"], pod_of(found)
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert pod["restartPolicy"] == "OnFailure"
    assert spec["backoffLimit"] == 30  # ten losses, in which all three stop
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": "10", "memory": "4096Mi"}
    assert resources["limits"] == resources["requests"] | {"nvidia.com/gpu": "2"}
    assert {each["image"] for each in (*pod["containers"], *pod["initContainers"])} == {IMAGE}
    assert "nvidia.com/gpu" not in str(made(tmp_path / "cpu")["training"])


def test_pods_share_what_a_killed_run_goes_on_from(tmp_path):
    pod = pod_of(made(tmp_path))
    container = pod["containers"][0]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {name: f"digits-{name}" for name in ("data", "output", "cache")}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    cache = {each["name"]: each["value"] for each in container["env"]}["TLEXPORT_CACHE"]
    assert Path(cache).is_relative_to(mounts["cache"])
    words = container["command"]
    assert Path(words[words.index("-o") + 1]).is_relative_to(mounts["output"])
    assert mounts["data"] in words


def test_the_pods_wait_until_the_meeting_place_has_a_name(tmp_path):
    """The script is Python, and asks for the name that torchrun is given."""
    pod = pod_of(made(tmp_path))
    (waits,) = pod["initContainers"]
    compile(waits["args"][0], "await-name", "exec")
    words = pod["containers"][0]["command"]
    host, port = words[words.index("--rdzv-endpoint") + 1].split(":")
    assert f'getaddrinfo("{host}", {port})' in waits["args"][0]


def test_servers_do_not_take_training_pods_for_theirs(tmp_path):
    found = made(tmp_path)
    labels = found["training"]["spec"]["template"]["metadata"]["labels"]
    assert found["training-service"]["spec"]["selector"].items() <= labels.items()
    for name in ("deployment", "service", "podmonitor"):
        selector = found[name]["spec"]["selector"]
        assert not (selector.get("matchLabels") or selector).items() <= labels.items(), name


def test_without_an_image_there_is_no_job(tmp_path):
    assert not {"training", "training-service"} & set(made(tmp_path, training_image=""))


@pytest.mark.parametrize(
    "more", [{"training_nodes": 0}, {"training_devices": 0}, {"training_image": "own:1 # evil"}]
)
def test_wrong_requests_are_refused(more):
    with pytest.raises(OptionError) as caught:
        ManifestOptions(**more)
    assert f"--{next(iter(more)).replace('_', '-')}" in caught.value.expected
