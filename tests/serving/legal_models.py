"""Repositories that look odd and that a server loads all the same: name -> how to write one."""

from __future__ import annotations

from serving import small_models as small
from serving.broken_models import ADDS, CONTROL, TEXTS, TWO, WITHOUT_BATCH, sequence, warm_file
from serving.odd_models import (
    FLOAT,
    LABELLED,
    ONE,
    PYTHON,
    ZEROS,
    biased,
    ensemble,
    function,
    given,
    lays,
    no_file,
    node,
    of_domains,
    outside,
    step,
    then,
    warmed,
    with_sequence,
    without_output_shape,
)

config, plain, parameters = small.config, small.plain, small.parameters
IN_PYTHON = plain().replace('"onnxruntime"', '"python"')


def linked_version(folder):
    (folder / "1").rename(folder / "real")
    (folder / "1").symlink_to("real")


def linked_file(folder):
    (folder / "1/model.onnx").rename(folder / "real.onnx")
    (folder / "1/model.onnx").symlink_to("../real.onnx")


def linked_data(folder):
    (folder / "1/data").rename(folder / "1/real")
    (folder / "1/data").symlink_to("real")


LEGAL = {
    # folders
    "renamed": lays(config=plain(more='default_model_filename: "net.onnx"\n'), file="net.onnx"),
    "deeper": lays(
        config=plain(more='default_model_filename: "sub/net.onnx"\n'), file="sub/net.onnx"
    ),
    "in_a_folder": lays(file="model.onnx/model.onnx"),
    "no_backend": lays(config=plain().replace('backend: "onnxruntime"\n', "")),
    "old_platform": lays(
        config=plain().replace('backend: "onnxruntime"', 'platform: "onnxruntime_onnx"')
    ),
    "both_said": lays(config='platform: "onnxruntime_onnx"\n' + plain()),
    "version_0": then(lays(), lambda folder: (folder / "1").rename(folder / "0")),
    "version_of_date": then(lays(), lambda folder: (folder / "1").rename(folder / "20241124")),
    "other_things": lays(
        **{"notes_dot_txt": b"x", "_dot_hidden__a": b"x", "03__a": b"x", "2": b"a file"}
    ),
    "older_is_cut": then(
        lays(**{"2__x": b""}),
        lambda folder: (folder / "1/model.onnx").rename(folder / "2/model.onnx"),
    ),
    "policy_partly": lays(
        config=plain(more="version_policy { specific { versions: [ 1, 3 ] } }\n")
    ),
    "policy_all": lays(config=plain(more="version_policy { all { } }\n")),
    "linked_version": then(lays(), linked_version),
    "linked_file": then(lays(), linked_file),
    "python": no_file(IN_PYTHON, **{"1__model_dot_py": PYTHON}),
    # how a configuration is written
    "other_marks": lays(
        config="# a comment\n"
        + plain().replace('"x"', "'x'").replace("{", "<").replace("}", ">").replace(": [3]", ":3")
    ),
    "latin_comment": then(
        lays(), lambda f: (f / "config.pbtxt").write_bytes(plain().encode() + b"# \xe9\n")
    ),
    # files
    "ai_onnx_by_name": lays(of_domains([("ai.onnx", 18)])),
    "ir_3": lays(biased(3, 9, listed=True)),
    "ir_2": lays(of_domains([("", 7)], ir_version=2)),
    "unused_domain": lays(of_domains([("", 18), ("somebodys.own", 99)])),
    "torch_domain": lays(of_domains([("", 18), ("pkg.torch", 1)])),
    "microsoft_operator": lays(
        of_domains([("", 18), ("com.microsoft", 1)], [node("Gelu", "com.microsoft")])
    ),
    "microsoft_unimported": lays(of_domains([("", 18)], [node("Gelu", "com.microsoft")])),
    "ml_operator": lays(
        of_domains(
            [("", 18), ("ai.onnx.ml", 3)],
            [node("Scaler", "ai.onnx.ml", offset=[0.0] * 3, scale=[1.0] * 3)],
        )
    ),
    "own_function": lays(
        of_domains(
            [("", 18), ("own", 1)],
            [node("F", "own")],
            functions=[function([node("Relu")], [("", 18)])],
        )
    ),
    "data_beside": outside("data", "1/data"),
    "data_below": outside("sub/data", "1/sub/data"),
    "data_dotted": outside("./data", "1/data"),
    "data_up_and_down": then(
        outside("sub/../data", "1/data"), lambda folder: (folder / "1/sub").mkdir()
    ),
    "data_part": outside("data", "1/data", offset=4, length=12, data=b"skip" + b"\0" * 16),
    "data_in_a_folder": outside("data", "1/model.onnx/data", file="1/model.onnx/model.onnx"),
    "data_linked": then(outside("data", "1/data"), linked_data),
    # inputs and outputs
    "input_narrower": lays(small.double(("n", "k")), config(["x FP32 3"], ["y FP32 -1"])),
    "output_shape_unsaid": lays(without_output_shape()),
    "output_inferred": lays(small.double(("n", 3), ("n", "k"))),
    "one_output_of_two": lays(with_sequence()),
    "scalar": lays(small.double(()), config(["x FP32 1"], ["y FP32 1"], max_batch=0)),
    "column": lays(
        small.double(("n",)), config(["x FP32 1 reshape { }"], ["y FP32 1 reshape { }"])
    ),
    "reshaped": lays(
        config=config(
            ["x FP32 1,3 reshape { shape: [ 3 ] }"], ["y FP32 1,3 reshape { shape: [ 3 ] }"]
        )
    ),
    "reshaped_unbatched": lays(
        small.double((2, 3)),
        config(["x FP32 6 reshape { shape: [ 2, 3 ] }"], ["y FP32 2,3"], max_batch=0),
    ),
    "offered": lays(
        biased(listed=True),
        config(["x FP32 -1,3", "bias FP32 3 optional: true"], ["y FP32 -1,3"], max_batch=0),
    ),
    "batch_in_dims": lays(config=config(["x FP32 -1,3"], ["y FP32 -1,3"], max_batch=0)),
    "labels": lays(config=config(["x FP32 3"], [LABELLED]), labels_dot_txt="é\n文\n\n".encode()),
    "labels_unended": lays(config=config(["x FP32 3"], [LABELLED]), labels_dot_txt=b"a\nb\nc"),
    "labels_of_a_grid": lays(
        small.double(("n", 2, 3)),
        config(["x FP32 2,3"], ['y FP32 2,3 label_filename: "labels.txt"']),
        labels_dot_txt=b"a\nb\n",
    ),
    # how it is served
    "batching_of_one": lays(WITHOUT_BATCH[0], WITHOUT_BATCH[1] + "dynamic_batching { }\n"),
    "priorities": lays(
        config=plain(
            more="dynamic_batching { priority_levels: 2 default_priority_level: 1 "
            "priority_queue_policy { key: 1 value { max_queue_size: 3 } } }\n"
        )
    ),
    "kind_auto": lays(config=plain().replace("KIND_CPU", "KIND_AUTO")),
    "count_minus": lays(config=plain(instances=-1)),
    "count_0": lays(config=plain(instances=0)),
    "threads_minus": lays(config=plain().replace('string_value: "1"', 'string_value: "-1"')),
    "arena_spelled": lays(config=plain(more=parameters({"enable_mem_arena": "True"}))),
    "gpu_choice_on_cpu": lays(
        config=plain(
            more="optimization { execution_accelerators { gpu_execution_accelerator "
            '[ { name: "warp" } ] } }\n'
        )
    ),
    "level_9": lays(config=plain(more="optimization { graph { level: 9 } }\n")),
    "cached": lays(config=plain(more="response_cache { enable: true }\n")),
    "control_of_nothing": lays(config=sequence('control_input { name: "nobody" }')),
    "controlled": lays(
        small.build(
            [("Add", ["x", "start"], ["y"])],
            [("x", FLOAT, ["n", 1]), ("start", FLOAT, ["n", 1])],
            [("y", FLOAT, ["n", 1])],
        ),
        config(["x FP32 1"], ["y FP32 1"])
        + sequence(CONTROL.format("start", "fp32_false_true: [ 0, 1 ]")).removeprefix(plain()),
    ),
    # warm-up
    "warm_of_none": warmed(given(ZEROS)),
    "warm_unbatched": warmed(
        f"batch_size: 1 {given(ZEROS.replace('[ 3 ]', '[ 2, 3 ]'))}", *WITHOUT_BATCH
    ),
    "warm_longer": lays(config=warm_file(plain()), warmup__f=b"\0" * 16),
    "warm_texts": lays(
        TEXTS[0],
        warm_file(TEXTS[1], "STRING dims: [ 2 ]"),
        warmup__f=b"\1\0\0\0a\0\0\0\0",
    ),
    "warm_by_chance": warmed(
        f"batch_size: 8 {given('data_type: TYPE_STRING dims: [ 2 ] random_data: true')}", *TEXTS
    ),
    # ensembles
    "en_one": ensemble(ONE),
    "en_two": ensemble(TWO),
    "en_other_order": ensemble("".join(reversed(TWO.splitlines(keepends=True)))),
    "en_version": ensemble(step("@A", {"x": "X"}, {"y": "Y"}, 1)),
    "en_free": ensemble(ONE, "X FP32 -1", "Y FP32 -1"),
    "en_fed_twice": ensemble(step("@A", {"x": "X", "z": "X"}, {"y": "Y"}), members=ADDS),
    "en_around_unbatched": ensemble(
        ONE,
        members={"A": (small.double((1, 3)), config(["x FP32 1,3"], ["y FP32 1,3"], max_batch=0))},
    ),
}

COMPLETED = {
    "undescribed": lays(config=None),
    "undescribed_folder": lays(config=None, file="model.onnx/model.onnx"),
    "empty": lays(config=""),
    "only_batch": lays(config='backend: "onnxruntime"\nmax_batch_size: 8\n'),
    "only_input": lays(
        config='max_batch_size: 8\ninput { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }\n'
    ),
    "only_input_batchless": lays(config='input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }\n'),
    "mixed_axes": lays(biased(listed=False), 'backend: "onnxruntime"\n'),
    "scalar": lays(small.double(()), 'backend: "onnxruntime"\n'),
    "column": lays(small.double(("n",)), 'backend: "onnxruntime"\n'),
}
"""Legal where the server completes configurations."""
