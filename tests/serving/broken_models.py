"""Repositories that a server refuses: name -> (the rule that lint tells, how to write one)."""

from __future__ import annotations

from onnx import TensorProto
from serving import small_models as small
from serving.odd_models import (
    FLOAT,
    LABELLED,
    ONE,
    PAIR,
    ZEROS,
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
    without_input_shape,
)

config, plain, parameters = small.config, small.plain, small.parameters
TEXTS = (
    small.build(
        [("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ["n", 2])],
        [("y", TensorProto.STRING, ["n", 2])],
    ),
    config(["x STRING 2"], ["y STRING 2"]),
)
WITHOUT_BATCH = (small.double((2, 3)), config(["x FP32 2,3"], ["y FP32 2,3"], max_batch=0))
PREFERS = "dynamic_batching {{ preferred_batch_size: {} }}\n"
CONTROL = 'control_input {{ name: "{}" control {{ kind: CONTROL_SEQUENCE_START {} }} }}'
IN_PYTHON = plain().replace('"onnxruntime"', '"python"')


def priorities(rest: str) -> str:
    return plain(more=f"dynamic_batching {{ priority_levels: 2 {rest} }}\n")


def sequence(*controls: str) -> str:
    return plain(more=f"sequence_batching {{ {' '.join(controls)} }}\n")


FROM_FILE = 'data_type: TYPE_FP32 dims: [ 3 ] input_data_file: "f"'


def warm_file(described: str, told: str = "FP32 dims: [ 3 ]") -> str:
    """A configuration with a warm-up from the file `warmup/f`."""
    body = given(f'data_type: TYPE_{told} input_data_file: "f"')
    return f'{described}model_warmup {{ name: "w" batch_size: 1 {body} }}\n'


def renamed(to: str):
    return then(lays(), lambda folder: (folder / "1").rename(folder / to))


def linked(folder, target):
    (folder / "1/data").rename(folder.parent / f"{folder.name}.data")
    (folder / "1/data").symlink_to(target.format(folder.name))


FOLDERS = {
    "unparsed": ("config-parse", lays(config="max_batch: 3\n")),
    "two_schedulers": (
        "config-parse",
        lays(config=plain(more="dynamic_batching { }\nsequence_batching { }\n")),
    ),
    "other_name": ("config-name", lays(config='name: "other"\n' + plain())),
    "slip_of_backend": ("backend", lays(config=plain().replace('"onnxruntime"', '"onnx"'))),
    "slip_of_platform": (
        "backend",
        lays(config=plain().replace('backend: "onnxruntime"', 'platform: "onnx"')),
    ),
    "two_backends": ("backend", lays(config='platform: "pytorch_libtorch"\n' + plain())),
    "no_backend": (
        "backend",
        lays(
            config=plain(more='default_model_filename: "net.onnx"\n').replace(
                'backend: "onnxruntime"\n', ""
            ),
            file="net.onnx",
        ),
    ),
    "named_elsewhere": (
        "model-file",
        lays(config=plain(more='default_model_filename: "net.onnx"\n')),
    ),
    "inner_name": ("model-file", lays(file="model.onnx/net.onnx")),
    "version_word": ("version-policy", renamed("v1")),
    "version_01": ("version-policy", renamed("01")),
    "version_minus": ("version-folder", renamed("-1")),
    "version_1abc": ("version-folder", renamed("1abc")),
    "policy_gone": (
        "version-policy",
        lays(config=plain(more="version_policy { specific { versions: [ 3 ] } }\n")),
    ),
    "policy_none": (
        "version-policy",
        lays(config=plain(more="version_policy { latest { num_versions: 0 } }\n")),
    ),
    "newest_is_cut": ("onnx-file", lays(**{"2__model_dot_onnx": b"x"})),
    "class_gone": ("python-class", no_file(IN_PYTHON, **{"1__model_dot_py": b"x = 1\n"})),
}

FILES = {
    "empty_file": ("onnx-file", lays(b"")),
    "half_a_file": ("onnx-file", lays(small.double().SerializeToString()[:-20])),
    "no_onnx": ("onnx-file", lays(b"hello world")),
    "ir_99": ("onnx-ir", lays(small.double(ir_version=99))),
    "opset_99": ("onnx-opset", lays(of_domains([("", 99)]))),
    "no_opset": ("onnx-opset", lays(of_domains([]))),
    "ml_99": ("onnx-opset", lays(of_domains([("", 18), ("ai.onnx.ml", 99)]))),
    "microsoft_99": ("onnx-opset", lays(of_domains([("", 18), ("com.microsoft", 99)]))),
    "nhwc_99": ("onnx-opset", lays(of_domains([("", 18), ("com.ms.internal.nhwc", 99)]))),
    "training_9": ("onnx-opset", lays(of_domains([("", 18), ("ai.onnx.preview.training", 9)]))),
    "function_99": (
        "onnx-opset",
        lays(
            of_domains(
                [("", 18), ("own", 1)],
                [node("F", "own")],
                functions=[function([node("Relu")], [("", 99)])],
            )
        ),
    ),
    "no_operator_of_microsoft": (
        "onnx-operator",
        lays(of_domains([("", 18), ("com.microsoft", 1)], [node("Nothing", "com.microsoft")])),
    ),
    "own_operator": (
        "onnx-operator",
        lays(of_domains([("", 18), ("own", 1)], [node("Thing", "own")])),
    ),
    "no_operator": ("onnx-operator", lays(of_domains([("", 18)], [node("Nothing")]))),
    "newer_operator": ("onnx-operator", lays(of_domains([("", 18)], [node("Gelu")]))),
    "data_gone": ("data-file", outside("data")),
    "data_beside_folder": (
        "data-file",
        outside("data", "1/data", file="1/model.onnx/model.onnx"),
    ),
    "data_cut": ("data-range", outside("data", "1/data", data=b"12345678")),
    "data_beyond": ("data-range", outside("data", "1/data", offset=8, length=12)),
    "data_before": ("data-range", outside("data", "1/data", offset=-4, length=12)),
    "data_shorter": ("data-range", outside("data", "1/data", offset=0, length=8)),
    "data_longer": ("data-range", outside("data", "1/data", offset=0, length=16, data=b"\0" * 16)),
    "data_above": ("data-path", outside("../data", "data")),
    "data_absolute": ("data-path", outside("{folder}/1/data", "1/data")),
    "data_nameless": ("data-path", outside("")),
    "data_linked": (
        "data-path",
        then(outside("data", "1/data"), lambda folder: linked(folder, "../../{}.data")),
    ),
}

TENSORS = {
    "dims_zero": ("tensor-described", lays(config=config(["x FP32 0"], ["y FP32 3"]))),
    "dims_minus": ("tensor-described", lays(config=config(["x FP32 -2"], ["y FP32 3"]))),
    "dims_gone": ("tensor-described", lays(config=config(["x FP32 "], ["y FP32 3"]))),
    "type_gone": (
        "tensor-described",
        lays(config=plain().replace('name: "x" data_type: TYPE_FP32', 'name: "x"')),
    ),
    "name_gone": ("tensor-described", lays(config=plain().replace('name: "x" ', ""))),
    "image_of_one": (
        "tensor-described",
        lays(config=plain().replace("input { ", "input { format: FORMAT_NHWC ")),
    ),
    "twice": ("tensor-twice", lays(config=config(["x FP32 3", "x FP32 3"], ["y FP32 3"]))),
    "unlisted": (
        "input-missing",
        lays(
            small.build(
                [("Add", ["x", "x"], ["y"])],
                [("x", FLOAT, ["n", 3]), ("unused", FLOAT, ["n", 3])],
                [("y", FLOAT, ["n", 3])],
            )
        ),
    ),
    "other_input": ("tensor-unknown", lays(config=config(["xs FP32 3"], ["y FP32 3"]))),
    "other_output": ("tensor-unknown", lays(config=config(["x FP32 3"], ["z FP32 3"]))),
    "type_of_input": ("tensor-dtype", lays(config=config(["x INT64 3"], ["y FP32 3"]))),
    "type_of_output": ("tensor-dtype", lays(config=config(["x FP32 3"], ["y FP16 3"]))),
    "type_unserved": (
        "tensor-dtype",
        lays(
            small.build(
                [("Cast", ["x"], ["y"], {"to": FLOAT})],
                [("x", TensorProto.BFLOAT16, ["n", 3])],
                [("y", FLOAT, ["n", 3])],
            ),
            config(["x BF16 3"], ["y FP32 3"]),
        ),
    ),
    "sequence_of_tensors": (
        "tensor-dtype",
        lays(with_sequence(), config(["x FP32 3"], ["s FP32 3"])),
    ),
    "input_other_size": ("tensor-dims", lays(config=config(["x FP32 4"], ["y FP32 3"]))),
    "input_free": ("tensor-dims", lays(config=config(["x FP32 -1"], ["y FP32 3"]))),
    "input_with_batch": ("tensor-dims", lays(config=config(["x FP32 -1,3"], ["y FP32 3"]))),
    "output_free": ("tensor-dims", lays(config=config(["x FP32 3"], ["y FP32 -1"]))),
    "output_fixed": (
        "tensor-dims",
        lays(small.double(("n", "k")), config(["x FP32 3"], ["y FP32 3"])),
    ),
    "output_inferred": (
        "tensor-dims",
        lays(small.double(("n", 3), ("n", "k")), config(["x FP32 3"], ["y FP32 -1"])),
    ),
    "scalar_of_two": (
        "tensor-dims",
        lays(small.double(()), config(["x FP32 1"], ["y FP32 2"], max_batch=0)),
    ),
    "rank_unknown": ("first-axis", lays(without_input_shape())),
    "scalar_batched": ("first-axis", lays(small.double(()), config(["x FP32 1"], ["y FP32 1"]))),
    "input_fixed_batch": ("first-axis", lays(small.double((1, 3)))),
    "output_fixed_batch": ("first-axis", lays(small.double(("n", 3), (8, 3)))),
    "reshape_more": (
        "reshape",
        lays(config=config(["x FP32 3 reshape { shape: [ 4 ] }"], ["y FP32 3"])),
    ),
    "reshape_free": (
        "reshape",
        lays(
            small.double(("n", "k")),
            config(["x FP32 1,-1 reshape { shape: [ 3 ] }"], ["y FP32 -1"]),
        ),
    ),
    "reshape_to_scalar": (
        "reshape",
        lays(
            small.double(()),
            config(["x FP32 1 reshape { }"], ["y FP32 1 reshape { }"], max_batch=0),
        ),
    ),
    "optional_batched": (
        "optional-batched",
        lays(config=config(["x FP32 3 optional: true"], ["y FP32 3"])),
    ),
    "optional_needed": (
        "optional-batched",
        lays(
            small.double((2, 3)),
            config(["x FP32 2,3 optional: true"], ["y FP32 2,3"], max_batch=0),
        ),
    ),
    "labels_gone": ("label-file", lays(config=config(["x FP32 3"], [LABELLED]))),
    "labels_absolute": (
        "label-file",
        lays(config=config(["x FP32 3"], [LABELLED.replace("labels", "/etc/hostname")])),
    ),
}

SETTINGS = {
    "max_minus": ("max-batch", lays(config=plain(max_batch=-1))),
    "prefers_more": ("preferred-batch", lays(config=plain(more=PREFERS.format(9)))),
    "prefers_none": ("preferred-batch", lays(config=plain(more=PREFERS.format(0)))),
    "prefers_unbatched": (
        "preferred-batch",
        lays(WITHOUT_BATCH[0], WITHOUT_BATCH[1] + PREFERS.format(1)),
    ),
    "priority_over": ("priority", lays(config=priorities("default_priority_level: 3"))),
    "priority_unset": ("priority", lays(config=priorities(""))),
    "priority_key": (
        "priority",
        lays(
            config=priorities(
                "default_priority_level: 1 priority_queue_policy { key: 5 value { } }"
            )
        ),
    ),
    "cpu_with_gpus": (
        "instance-kind",
        lays(config=plain().replace("kind: KIND_CPU", "kind: KIND_CPU gpus: [ 0 ]")),
    ),
    "threads_word": (
        "parameter",
        lays(config=plain().replace('string_value: "1"', 'string_value: "all"')),
    ),
    "mode_2": ("parameter", lays(config=plain(more=parameters({"execution_mode": "2"})))),
    "arena_maybe": (
        "parameter",
        lays(config=plain(more=parameters({"enable_mem_arena": "maybe"}))),
    ),
    "accelerator": (
        "accelerator",
        lays(
            config=plain(
                more="optimization { execution_accelerators { cpu_execution_accelerator "
                '[ { name: "warp" } ] } }\n'
            )
        ),
    ),
    "control_unknown": (
        "sequence-control",
        lays(config=sequence(CONTROL.format("q", "fp32_false_true: [ 0, 1 ]"))),
    ),
    "control_wide": (
        "sequence-control",
        lays(config=sequence(CONTROL.format("x", "fp32_false_true: [ 0, 1 ]"))),
    ),
    "control_valueless": ("sequence-control", lays(config=sequence(CONTROL.format("x", "")))),
    "control_twice": (
        "sequence-control",
        lays(
            config=sequence(*(CONTROL.format(n, "fp32_false_true: [ 0, 1 ]") for n in ("x", "q")))
        ),
    ),
}

WARMUPS = {
    "warm_shape": (
        "warmup-shape",
        warmed(f"batch_size: 1 {given(ZEROS.replace('[ 3 ]', '[ 4 ]'))}"),
    ),
    "warm_with_batch": (
        "warmup-shape",
        warmed(f"batch_size: 1 {given(ZEROS.replace('[ 3 ]', '[ 1, 3 ]'))}"),
    ),
    "warm_type": ("warmup-shape", warmed(f"batch_size: 1 {given(ZEROS.replace('FP32', 'INT64'))}")),
    "warm_free": (
        "warmup-shape",
        warmed(
            f"batch_size: 1 {given(ZEROS.replace('[ 3 ]', '[ -1 ]'))}",
            small.double(("n", "k")),
            config(["x FP32 -1"], ["y FP32 -1"]),
        ),
    ),
    "warm_dataless": (
        "warmup-data",
        warmed(f"batch_size: 1 {given('data_type: TYPE_FP32 dims: [ 3 ]')}"),
    ),
    "warm_inputless": ("warmup-input", warmed("batch_size: 1")),
    "warm_other": ("warmup-input", warmed(f"batch_size: 1 {given(ZEROS, 'q')}")),
    "warm_file_gone": ("warmup-data", warmed(f"batch_size: 1 {given(FROM_FILE)}")),
    "warm_file_cut": ("warmup-data", lays(config=warm_file(plain()), warmup__f=b"12345678")),
    "warm_texts_cut": (
        "warmup-data",
        lays(TEXTS[0], warm_file(TEXTS[1], "STRING dims: [ 2 ]"), warmup__f=b"\1\0\0\0a"),
    ),
}

TWO = step("@A", {"x": "X"}, {"y": "M"}) + step("@B", {"x": "M"}, {"y": "Y"})
ADDS = {
    "A": (
        small.build(
            [("Add", ["x", "z"], ["y"])],
            [("x", FLOAT, ["n", 3]), ("z", FLOAT, ["n", 3])],
            [("y", FLOAT, ["n", 3])],
        ),
        config(["x FP32 3", "z FP32 3"], ["y FP32 3"]),
    ),
    "B": (small.double(), plain()),
}

ENSEMBLES = {
    "en_stranger": ("ensemble-step", ensemble(ONE.replace("@A", "stranger"))),
    "en_nameless": ("ensemble-step", ensemble(ONE.replace("@A", ""))),
    "en_mapless": ("ensemble-step", ensemble(step("@A", {}, {"y": "Y"}))),
    "en_version_9": ("ensemble-step", ensemble(step("@A", {"x": "X"}, {"y": "Y"}, 9))),
    "en_itself": ("ensemble-step", ensemble(step("@", {"X": "X"}, {"Y": "Y"}))),
    "en_stepless": ("ensemble-field", ensemble("")),
    "en_instances": ("ensemble-field", ensemble(ONE, more="instance_group { kind: KIND_CPU }\n")),
    "en_warm": (
        "ensemble-field",
        ensemble(ONE, more=f'model_warmup {{ name: "w" {given(ZEROS, "X")} }}\n'),
    ),
    "en_steps_in_model": (
        "ensemble-field",
        lays(config=plain(more=f"ensemble_scheduling {{ {ONE} }}\n")),
    ),
    "en_unused": ("ensemble-tensor", ensemble(ONE, "X FP32 3; Z FP32 3")),
    "en_unmade": ("ensemble-tensor", ensemble(step("@A", {"x": "X"}, {"y": "M"}))),
    "en_sourceless": ("ensemble-tensor", ensemble(step("@A", {"x": "Q"}, {"y": "Y"}))),
    "en_made_twice": ("ensemble-tensor", ensemble(ONE + ONE.replace("@A", "@B"))),
    "en_for_nobody": ("ensemble-tensor", ensemble(ONE + step("@B", {"x": "X"}, {"y": "M"}))),
    "en_key": ("ensemble-map", ensemble(step("@A", {"q": "X"}, {"y": "Y"}))),
    "en_key_out": ("ensemble-map", ensemble(step("@A", {"x": "X"}, {"q": "Y"}))),
    "en_key_left_out": ("ensemble-map", ensemble(ONE, members=ADDS)),
    "en_type": ("ensemble-type", ensemble(ONE, "X INT64 3")),
    "en_size": ("ensemble-shape", ensemble(ONE, "X FP32 4")),
    "en_rank": ("ensemble-shape", ensemble(ONE, "X FP32 1,3")),
    "en_size_out": ("ensemble-shape", ensemble(ONE, outputs="Y FP32 4")),
    "en_between": (
        "ensemble-shape",
        ensemble(
            TWO,
            members=PAIR | {"B": (small.double(("n", 4)), config(["x FP32 4"], ["y FP32 4"]))},
            outputs="Y FP32 4",
        ),
    ),
    "en_batch": ("ensemble-batch", ensemble(ONE, max_batch=16)),
}

BROKEN = FOLDERS | FILES | TENSORS | SETTINGS | WARMUPS | ENSEMBLES

COMPLETED = {
    "stiff": (
        "first-axis",
        lays(small.double((1, 3)), 'backend: "onnxruntime"\nmax_batch_size: 4\n'),
    ),
    "half_wrong": (
        "tensor-dims",
        lays(config='max_batch_size: 8\noutput { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }\n'),
    ),
    "batch_in_dims": (
        "tensor-dims",
        lays(config='input { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] }\n'),
    ),
    "net_undescribed": ("backend", lays(config=None, file="net.onnx")),
}
"""Refused by a server that completes configurations."""

KILLERS = {
    "labels_folder": (
        "label-file",
        lays(config=config(["x FP32 3"], [LABELLED]), labels_dot_txt__a=b""),
    ),
    "version_huge": ("version-folder", renamed("9" * 20)),
}
"""The server ends for them, and with it every other model."""

UNWARMED = {
    "warm_over": ("warmup-batch", warmed(f"batch_size: 9 {given(ZEROS)}")),
    "warm_more": ("warmup-input", warmed(f"batch_size: 1 {given(ZEROS)} {given(ZEROS, 'q')}")),
}
"""Refused when the warm-up runs, for which the server itself ends now and then (signal 11)."""
