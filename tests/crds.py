"""What the objects of others' operators may hold: KServe's and the Prometheus operator's.

KServe publishes its types with its Python library, the Prometheus operator's are in an npm package
made of its definitions. Both are downloaded and read, never imported.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate

PLACE = Path(__file__).parent / ".data" / "crds"
KSERVE = "kserve==0.21.0"
PROMETHEUS = "@kubernetes-models/prometheus-operator@6.0.0"
KUBERNETES = "1.34"


def fetch(place: Path = PLACE) -> Path:
    """Download and unpack both once; needs pip, npm and a network.

    Raises:
        OSError, subprocess.CalledProcessError: one of them is not there.
    """
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, KSERVE], check=True, capture_output=True)
        subprocess.run(
            ["npm", "pack", "--silent", PROMETHEUS], cwd=folder, check=True, capture_output=True
        )
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "crds" / "kserve")
        (package,) = folder.glob("*.tgz")
        with tarfile.open(package) as archive:
            archive.extractall(folder / "crds" / "prometheus", filter="data")
        (folder / "crds").rename(place)
    return place


@cache
def _kserve(kind: str) -> dict[str, str]:
    """JSON name -> type of a class of KServe's library."""
    file = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
    path = fetch() / "kserve" / "kserve" / "models" / f"{file}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in found.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return {tables["attribute_map"][n]: kind for n, kind in tables["openapi_types"].items()}


def hold_kserve(value: Any, kind: str, where: str) -> None:
    """Refuse what KServe does not know: names at every level, and kinds of values."""
    plain = {"str": str, "int": int, "bool": bool, "float": (int, float)}
    if kind.startswith("list["):
        assert isinstance(value, list), where
        for place, each in enumerate(value):
            hold_kserve(each, kind[5:-1], f"{where}[{place}]")
    elif kind.startswith("dict("):
        assert isinstance(value, dict), where
        for name, each in value.items():
            hold_kserve(each, kind[5:-1].split(", ", 1)[1], f"{where}.{name}")
    elif kind in plain:
        assert isinstance(value, plain[kind]), f"{where}: {value!r} is no {kind}"
    elif kind == "V1Container":
        hold_container(value)
    elif kind.startswith(("V1alpha1", "V1beta1")):
        known = _kserve(kind)
        assert set(value) <= set(known), f"{where}: {sorted(set(value) - set(known))}"
        for name, each in value.items():
            hold_kserve(each, known[name], f"{where}.{name}")
    else:
        assert kind == "V1ObjectMeta", f"{where}: {kind} is not looked into"


def hold_container(value: dict[str, Any]) -> None:
    """Refuse what is no container of Kubernetes'."""
    spec = {"containers": [value]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def prometheus_fields(kind: str) -> dict[str, str]:
    """Name -> type, in TypeScript, of an object of the Prometheus operator."""
    folder = fetch() / "prometheus" / "package" / "monitoring.coreos.com" / "v1"
    text = (folder / f"{kind}.d.ts").read_text(encoding="utf-8")
    body = re.search(r"export interface \w+[^{]* \{(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    assert body is not None, kind
    return dict(re.findall(r'^    "(\w+)"\??: (.*);$', body[1], re.MULTILINE))


if __name__ == "__main__":
    print(json.dumps(str(fetch())))
