"""What lint says of a repository: where, how grave, and what it mends. No server here."""

from __future__ import annotations

import pytest
from serving import broken_models as broken
from serving import bundles
from serving import legal_models as legal
from serving import small_models as small
from serving.odd_models import LABELLED, ONE, ensemble, lays, no_file, node, of_domains

from tlexport.errors import RepositoryError
from tlexport.options import PackageOptions
from tlexport.serving.lint import RULES, lint, mend
from tlexport.serving.lint._text import Edit, Located, applied
from tlexport.serving.releases import release
from tlexport.stages.package import package

CASES = broken.BROKEN | broken.COMPLETED | broken.KILLERS | broken.UNWARMED


def rules(repository, severity=None, **more):
    found = lint(repository, cores=more.pop("cores", 2), **more)
    return [each.rule for each in found if severity in (None, each.severity)]


def test_every_error_has_a_repository_that_the_server_refuses_or_misreads():
    elsewhere = {"model-name", "label-count", "label-text", "label-path", "warmup-path"}
    errors = {name for name, (severity, _) in RULES.items() if severity == "error"}
    assert {rule for rule, _ in CASES.values()} | elsewhere == errors


@pytest.mark.parametrize("name", legal.LEGAL)
def test_no_finding_is_without_its_three_parts(tmp_path, name):
    legal.LEGAL[name](tmp_path, name)
    for finding in lint(tmp_path, cores=1):
        assert finding.severity == "warning"
        assert finding.expected and finding.got and finding.fix


@pytest.mark.parametrize(
    ("lay", "rule"),
    [
        (lays(config=small.plain(more="sequence_batching { }\n")), None),
        (
            lays(
                config=small.plain(
                    more='sequence_batching { state [ { input_name: "x" output_name: "y" '
                    "data_type: TYPE_FP32 dims: [ 3 ] } ] }\n"
                )
            ),
            "embedded",
        ),
        (
            lays(
                small.double(("n",)),
                small.config(
                    ["x FP32 1 allow_ragged_batch: true"], ["y FP32 1 reshape { }"]
                ).replace("dims: [1] allow", "dims: [1] reshape { } allow"),
            ),
            "embedded",
        ),
        (
            lays(config=small.plain(more="model_transaction_policy { decoupled: true }\n")),
            "embedded",
        ),
        (lays(config=small.plain(more="response_cache { enable: true }\n")), "response-cache"),
        (lays(config=small.plain(more="optimization { graph { level: -1 } }\n")), "graph-level"),
        (lays(config=small.plain(instances=3)), "thread-budget"),
        (lays(config=small.plain().split("instance_group")[0]), "thread-default"),
        (lays(of_domains([("", 6)], ir_version=3)), "onnx-old-opset"),
        (legal.LEGAL["warm_of_none"], "warmup-largest"),
        (legal.LEGAL["batching_of_one"], "batching-of-one"),
        (legal.LEGAL["policy_partly"], "version-policy-partly"),
        (legal.LEGAL["labels_of_a_grid"], "label-shape"),
        (ensemble(ONE, max_batch=0), "ensemble-batching"),
        (
            no_file(broken.IN_PYTHON, **{"1__model_dot_py": b"class TritonPythonModel("}),
            "python-syntax",
        ),
        (
            lays(
                config=small.plain(more='model_operations { op_library_filename: "nowhere.so" }\n')
            ),
            "op-library",
        ),
    ],
)
def test_what_is_legal_and_costs_is_a_warning(tmp_path, lay, rule):
    lay(tmp_path, "model")
    assert rules(tmp_path) == ([rule] if rule else [])
    assert rule is None or RULES[rule][0] == "warning"


def test_more_cores_are_a_larger_budget(tmp_path):
    lays(config=small.plain(instances=3))(tmp_path, "model")
    assert rules(tmp_path, cores=3) == []


@pytest.mark.parametrize(
    ("opsets", "ir_version", "triton", "found"),
    [
        ([("", 18)], 10, "24.05", []),
        ([("", 18)], 10, "24.04", ["onnx-ir"]),
        ([("", 22)], 10, "24.10", ["onnx-opset"]),
        ([("", 18), ("ai.onnx.ml", 5)], 9, "24.04", ["onnx-opset"]),
        ([("", 22)], 11, "23.03", ["onnx-ir", "onnx-opset"]),
    ],
)
def test_files_are_held_against_the_release(tmp_path, opsets, ir_version, triton, found):
    lays(of_domains(opsets, ir_version=ir_version))(tmp_path, "model")
    assert rules(tmp_path, triton=release(triton)) == found


def test_operators_of_microsoft_are_held_against_the_release(tmp_path):
    opsets = [("", 17), ("com.microsoft", 1)]
    model = of_domains(opsets, [node("PagedAttention", "com.microsoft")], ir_version=8)
    lays(model)(tmp_path, "model")
    (finding,) = lint(tmp_path, triton=release("24.10"), cores=1)
    assert finding.rule == "onnx-operator"
    assert finding.got == "com.microsoft:PagedAttention, which is of 1.23.0"
    assert finding.fix.endswith("serve it with 25.08 or newer")
    assert rules(tmp_path, triton=release("25.08")) == []


def test_a_finding_says_where(tmp_path):
    config = "# mine\n" + small.config(["xs FP32 3"], ["y FP32 3"])
    lays(config=config)(tmp_path, "model")
    (finding,) = lint(tmp_path, cores=1)
    assert (finding.line, finding.field) == (4, "input[0].name")
    assert "did you mean 'x'?" in finding.got
    assert finding.path == tmp_path / "model/config.pbtxt"


def test_a_configuration_that_does_not_parse_has_its_line(tmp_path):
    lays(config='backend: "onnxruntime"\nmax_batch: 3\n')(tmp_path, "model")
    (finding,) = lint(tmp_path, cores=1)
    assert finding.got.startswith("line 2: ")


def test_names_that_no_server_bears_and_hidden_folders(tmp_path):
    lays()(tmp_path, "two words")
    (tmp_path / ".git").mkdir()
    assert "model-name" in rules(tmp_path)
    assert {each.model for each in lint(tmp_path, cores=1)} == {"two words", ".git"}


def test_a_warm_up_from_elsewhere_is_an_error(tmp_path):
    text = broken.warm_file(small.plain()).replace('"f"', '"../../f"')
    lays(config=text, warmup__g=b"")(tmp_path / "models", "model")
    (tmp_path / "models/f").write_bytes(b"\0" * 12)
    assert "warmup-path" in rules(tmp_path / "models")


def test_what_is_no_repository_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match="no such folder"):
        lint(tmp_path / "nowhere")


def test_what_package_writes_has_nothing_to_find(tmp_path):
    place = tmp_path / "models"
    package(bundles.make(tmp_path / "a.bundle"), place)
    package(bundles.make(tmp_path / "b.bundle"), place, PackageOptions(name="flat", max_batch=0))
    external = bundles.make(tmp_path / "c.bundle", external=True)
    package(external, place, PackageOptions(name="big", triton="24.10"))
    # without batching the labels of a row are those of the whole answer: a warning
    assert rules(place, triton=release("24.10"), cores=1024) == ["label-shape"]


# ------------------------------------------------------------------ mending


MENDED = [
    name
    for name in (
        *("other_name", "slip_of_backend", "type_of_input", "type_of_output", "other_input"),
        *("input_other_size", "output_free", "output_inferred", "twice", "unlisted"),
        *("prefers_more", "optional_needed", "en_batch", "scalar_of_two"),
    )
]


@pytest.mark.parametrize("name", MENDED)
def test_safe_edits_mend_what_they_were_made_for(tmp_path, name):
    rule, lay = broken.BROKEN[name]
    lay(tmp_path, name)
    found = [each for each in lint(tmp_path, cores=2) if each.model == name]
    assert [each.rule for each in found if each.edits] == [rule]
    before = (tmp_path / name / "config.pbtxt").read_text()
    mend(found)
    assert rules(tmp_path, "error") == []
    assert (tmp_path / name / "config.pbtxt.orig").read_text() == before


def test_labels_are_mended(tmp_path):
    text = "\ufeffa\r\né\r\nc\r\n"
    config = small.config(["x FP32 3"], [LABELLED])
    lays(config=config, labels_dot_txt=text.encode())(tmp_path, "model")
    mend(lint(tmp_path, cores=2))
    assert (tmp_path / "model/labels.txt").read_bytes() == "a\né\nc\n".encode()
    assert rules(tmp_path) == []


def test_comments_and_whatever_is_right_stay_as_they_were(tmp_path):
    config = (
        "# latin: \udce9\n"
        "backend: 'onnx'   # the runtime\n"
        "max_batch_size: 4 input < name: 'x' # here\n data_type: TYPE_INT64, dims: 3 >\n"
        "output [ { name: 'y' data_type: TYPE_FP32 dims: -1 dims: 2 } ]\n"
    )
    lays(config=None)(tmp_path, "model")
    place = tmp_path / "model/config.pbtxt"
    place.write_bytes(config.encode("utf-8", "surrogateescape"))
    mend(lint(tmp_path, cores=2))
    mend(lint(tmp_path, cores=2))  # the file is read only once its backend is known
    wanted = config.replace("'onnx'", '"onnxruntime"').replace("INT64", "FP32")
    wanted = wanted.replace("dims: -1 dims: 2 ", "dims: [ 3 ]  ")
    assert place.read_bytes().decode("utf-8", "surrogateescape") == wanted
    assert (tmp_path / "model/config.pbtxt.orig").read_bytes().decode(
        "utf-8", "surrogateescape"
    ) == config
    assert rules(tmp_path, "error") == []


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ('a: 1\nb { c: "}" # }\n d: 2 }', ("b", 0, "d"), 3),
        ("a: [ 1,\n 2 ]\nb: 3", ("b",), 3),
        ("s [ { a: 1 },\n { a: 2 } ]\n", ("s", 1, "a"), 2),
        ("s < a: 'x' \n 'y' > t: 1", ("t",), 2),
        ("a: 1", ("nothing",), None),
        ("\nb { }", ("b", 0, "nothing"), 2),
    ],
)
def test_fields_are_found_in_any_style(text, path, line):
    assert Located(text).line(path) == line


def test_of_two_edits_at_one_place_one_is_made():
    assert applied("abcdef", [Edit(1, 3, "X"), Edit(2, 4, "Y"), Edit(5, 5, "Z")]) in (
        "aXdeZf",
        "abYeZf",
    )


def test_what_cannot_be_read_is_told_of(tmp_path, monkeypatch):
    lays()(tmp_path, "model")

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(tmp_path), "read_bytes", denied)
    with pytest.raises(RepositoryError, match=r"Permission denied: .*config.pbtxt"):
        lint(tmp_path, cores=1)
