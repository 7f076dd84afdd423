"""--pt2: a program of torch.export, and archives that would run code."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from importers import user_net

from tlexport import networks
from tlexport.bundle import Bundle
from tlexport.errors import DataError, OptionError
from tlexport.stages.export import export
from tlexport.stages.verify import verify

INPUTS = ("numbers:float32[batch,4]=-1..1", "ids:int64[batch,sequence]=0..19")


def save(path: Path, *, batch: int | None = None, nested: bool = False) -> Path:
    """`Two` as a program, its batch free or a constant."""
    rows = batch or 2
    axes = {0: torch.export.Dim("rows")} if batch is None else {}
    example = (torch.randn(rows, 4), torch.randint(0, 20, (rows, 5)))
    length = {1: torch.export.Dim("length", max=30)}
    module: torch.nn.Module = user_net.Two()
    if nested:
        module = Nested(module)
        example, shapes = (example,), ((axes, axes | length),)
    else:
        shapes = (axes, axes | length)
    program = torch.export.export(module.eval(), example, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


class Nested(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, both):
        return self.inner(*both)["logits"]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("pt2") / "two.pt2")


def test_a_program_goes_through_the_stages(take, tmp_path, program):
    report = take(pt2=str(program), inputs=INPUTS)
    assert report.inputs == INPUTS
    assert report.outputs[2] == "tokens:float32[batch,sequence,8]"
    bundle = Bundle(tmp_path / "b")
    assert bundle.manifest.weights == "program.pt2"
    numbers, ids = torch.randn(1, 4), torch.randint(0, 20, (1, 9))
    with torch.inference_mode():
        wanted = user_net.Two().eval()(numbers, ids)
        found = networks.network(bundle)(numbers, ids)
    torch.testing.assert_close(found[0], wanted["logits"])
    export(bundle)
    assert verify(bundle).passed


def test_axes_and_their_bounds_are_read_off(take, program):
    with pytest.raises(OptionError) as caught:
        take(pt2=str(program))
    assert "numbers:float32[batch,4]" in caught.value.fix
    assert "ids:int64[batch,ids_1]" in caught.value.fix


@pytest.mark.parametrize(
    ("made", "error", "told"),
    [
        ({"batch": 3}, DataError, "the constant 3"),
        ({"nested": True}, DataError, "tensors by position"),
    ],
)
def test_programs_that_cannot_be_served_are_refused(take, tmp_path, made, error, told):
    with pytest.raises(error, match=told):
        take(pt2=str(save(tmp_path / "p.pt2", **made)))


def test_no_file_and_no_archive(take, tmp_path):
    with pytest.raises(OptionError, match="no file"):
        take(pt2=str(tmp_path / "none.pt2"))
    (tmp_path / "text.pt2").write_text("not an archive")
    with pytest.raises(DataError, match=r"torch\.export\.save wrote"):
        take(pt2=str(tmp_path / "text.pt2"))
    torch.save({"x": torch.zeros(1)}, tmp_path / "weights.pt2")
    with pytest.raises(DataError, match="a program in"):
        take(pt2=str(tmp_path / "weights.pt2"))


class Evil:
    """What a pickle can do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def torch_pickle(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def rewrite(source: Path, target: Path, change) -> Path:
    """Copy an archive; `change(members)` may alter {name below the root: bytes}."""
    with zipfile.ZipFile(source) as archive:
        members = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return target


def in_json(name: str, change):
    def apply(members):
        value = json.loads(members[name])
        change(value)
        members[name] = json.dumps(value).encode()

    return apply


GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CODE = "__import__('pathlib').Path({mark!r}).touch()"


def attacks(mark: Path):
    """Ways to run code on load, and what is told of each."""
    evil, code = Evil(mark), CODE.format(mark=str(mark))

    def pickled_weight(members):
        config = json.loads(members[WEIGHTS])
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True
        members[WEIGHTS] = json.dumps(config).encode()
        members["data/weights/" + entry["path_name"]] = torch_pickle(evil)

    def opaque(members):
        name = "data/constants/model_constants_config.json"
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
        members[name] = json.dumps({"config": {"x": entry | {"tensor_meta": None}}}).encode()
        members["data/constants/opaque_obj_0"] = pickle.dumps(evil)

    def size(graph):
        values = graph["graph_module"]["graph"]["tensor_values"]
        first = next(v for v in values.values() if "as_expr" in v["sizes"][0])
        first["sizes"][0]["as_expr"]["expr_str"] = code

    def operator(graph):
        node = graph["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.os.system"

    def file_operator(graph):
        graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"

    def name(graph):
        text = json.dumps(graph)
        bad = json.dumps(f"numbers={code}")[1:-1]
        graph.clear()
        graph.update(json.loads(text.replace('"numbers"', f'"{bad}"')))

    def tree(graph):
        call = graph["graph_module"]["module_call_graph"][0]["signature"]
        protocol, spec = json.loads(call["in_spec"])
        context = json.dumps({"default_factory_module": "evil_module"})
        spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}
        call["in_spec"] = json.dumps([protocol, spec])

    return {
        "sample inputs": (
            lambda m: m.update({"data/sample_inputs/model.pt": torch_pickle(((evil,), {}))}),
            None,  # they are not needed, and not read
        ),
        "weight": (pickled_weight, "which only pickle reads"),
        "constant": (opaque, "which only pickle reads"),
        "old weights": (
            lambda m: m.update({"data/weights/model.pt": torch_pickle({"w": evil})}),
            "data/weights/model.pt",
        ),
        "old constants": (
            lambda m: m.update({"data/constants/model.pt": torch_pickle({"w": evil})}),
            "data/constants/model.pt",
        ),
        "library": (
            lambda m: m.update({"data/aotinductor/model/x.so": b"ELF"}),
            "a compiled library",
        ),
        "size": (in_json(GRAPH, size), 'the size "__import__'),
        "operator": (in_json(GRAPH, operator), "torch.os.system"),
        "file": (in_json(GRAPH, file_operator), "from_file"),
        "name": (in_json(GRAPH, name), 'the name "numbers='),
        "tree": (in_json(GRAPH, tree), "collections.defaultdict"),
    }


@pytest.mark.parametrize("kind", attacks(Path("x")))
def test_an_archive_never_runs_code(take, tmp_path, program, kind):
    mark = tmp_path / "pwned"
    change, told = attacks(mark)[kind]
    path = rewrite(program, tmp_path / "evil.pt2", change)
    if told is None:
        take(pt2=str(path), inputs=INPUTS)
    else:
        with pytest.raises(DataError) as caught:
            take(pt2=str(path), inputs=INPUTS)
        assert told in caught.value.got
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["sample inputs", "weight", "old weights", "size"])
def test_the_attacks_are_real(tmp_path, program, kind):
    """What torch itself does with these archives; if this fails, they prove nothing above."""
    mark = tmp_path / "pwned"
    path = rewrite(program, tmp_path / "evil.pt2", attacks(mark)[kind][0])
    try:
        torch.export.load(path)
    except Exception as error:
        print(error)
    assert mark.exists()


def test_two_members_of_one_name_are_refused(take, tmp_path, program):
    path = tmp_path / "twice.pt2"
    path.write_bytes(program.read_bytes())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        name = next(n for n in archive.namelist() if n.endswith("model.json"))
        archive.writestr(name, b"{}")
    with pytest.raises(DataError, match="two members of one name"):
        take(pt2=str(path))


def test_a_bundle_from_elsewhere_is_looked_through_again(take, tmp_path, program, monkeypatch):
    from tlexport.errors import BundleError
    from tlexport.files import sha256_of

    take(pt2=str(program), inputs=INPUTS)
    mark = tmp_path / "pwned"
    inside = tmp_path / "b" / "program.pt2"
    rewrite(program, inside, attacks(mark)["weight"][0])
    manifest = tmp_path / "b" / "bundle.json"
    old = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(old | {"weights_sha256": sha256_of(inside)}))
    with pytest.raises(BundleError, match="only pickle reads"):
        networks.network(Bundle(tmp_path / "b"))
    assert not mark.exists()
