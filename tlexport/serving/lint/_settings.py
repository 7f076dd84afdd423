"""Rules of batches, instances, threads and parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from tlexport.serving.lint._finding import Finding
from tlexport.serving.lint._model import Model, Scope

INTEGER = re.compile(r"\s*[+-]?\d{1,9}", re.ASCII)
NUMBERS = ("intra_op_thread_count", "inter_op_thread_count")
TRUTHS = ("enable_mem_arena", "enable_mem_pattern")
LEVELS = {-1: "BASIC", 1: "EXTENDED", 2: "no optimisation at all"}


def batches(model: Model, scope: Scope) -> Iterator[Finding]:
    """max_batch_size, and the batch sizes that are preferred."""
    config = model.config
    largest = config.max_batch_size
    if largest < 0:
        yield model.finding(
            "max-batch",
            ("max_batch_size",),
            "0 (no batching) or more",
            got=str(largest),
            fix="write max_batch_size: 0",
        )
    for steps, block in (
        (("dynamic_batching",), config.dynamic_batching),
        (("sequence_batching", "oldest"), config.sequence_batching.oldest),
    ):
        sizes = list(block.preferred_batch_size)
        wrong = [size for size in sizes if not 0 < size <= largest]
        if wrong:
            kept = [size for size in sizes if size not in wrong] or [largest]
            found = model.finding(
                "preferred-batch",
                (*steps, "preferred_batch_size"),
                f"sizes from 1 to max_batch_size, which is {largest}",
                got=", ".join(map(str, wrong)),
                fix=f"write preferred_batch_size: [ {', '.join(map(str, kept))} ]"
                if largest > 0
                else "write max_batch_size as well, or leave preferred_batch_size out",
            )
            where = (*steps, "preferred_batch_size")
            yield (
                found.mended(*model.text.set(where, f"[ {', '.join(map(str, kept))} ]"))
                if largest > 0
                else found
            )
    if config.HasField("dynamic_batching") and largest == 0 and model.completed.max_batch_size == 0:
        yield model.finding(
            "batching-of-one",
            ("dynamic_batching",),
            "a max_batch_size that batches may fill",
            got="max_batch_size 0, so no two requests are joined",
            fix="write max_batch_size, or leave dynamic_batching out",
        )


def priorities(model: Model, scope: Scope) -> Iterator[Finding]:
    """Priority levels of the queue."""
    block = model.config.dynamic_batching
    levels = int(block.priority_levels)
    if not levels:
        return
    where: tuple[str, ...] = ("dynamic_batching", "default_priority_level")
    wrong = [int(block.default_priority_level), *block.priority_queue_policy]
    for place, level in enumerate(wrong):
        if not 1 <= level <= levels:
            yield model.finding(
                "priority",
                ("dynamic_batching", "priority_queue_policy") if place else where,
                f"a level from 1 to priority_levels, which is {levels}",
                got=str(level),
                fix="write a level of that range, or more priority_levels",
            )


def instances(model: Model, scope: Scope) -> Iterator[Finding]:
    """Instance groups: how many, and where."""
    for place, group in enumerate(model.config.instance_group):
        kind = pb.ModelInstanceGroup.Kind.Name(group.kind)
        where = ("instance_group", place)
        if group.count < 0:
            yield model.finding(
                "instance-count",
                (*where, "count"),
                "one instance or more",
                got=f"{group.count}, for which the server makes one",
                fix="write count: 1",
            ).mended(*model.text.set((*where, "count"), "1"))
        if kind == "KIND_CPU" and group.gpus:
            yield model.finding(
                "instance-kind",
                (*where, "gpus"),
                "no GPUs for instances on the CPU",
                got=f"gpus {list(group.gpus)} with KIND_CPU",
                fix="write kind: KIND_GPU, or leave gpus out",
            )
        if kind == "KIND_GPU" and not Path("/proc/driver/nvidia").exists():
            yield model.finding(
                "instance-gpu",
                (*where, "kind"),
                "a GPU in the machine that serves it",
                got="none in this one, where the server refuses it",
                fix="serve it where there is one, or write kind: KIND_CPU",
            )


def threads(model: Model, scope: Scope) -> Iterator[Finding]:
    """Instances x threads against the cores."""
    if model.backend != "onnxruntime":
        return
    groups = list(model.config.instance_group)
    if any(g.kind in (pb.ModelInstanceGroup.KIND_GPU,) for g in groups):
        return  # the work is not on the cores
    copies = sum(max(group.count, 1) for group in groups) or 2
    each = _number(model, "intra_op_thread_count")
    if each is None:
        return
    if each <= 0:
        yield model.finding(
            "thread-default",
            ("parameters",),
            "a count of threads: instances x threads within the cores",
            got=f"none, so each of {copies} instances takes every core",
            fix='write instance_group { kind: KIND_CPU count: 1 } and the parameter "intra_op_'
            f'thread_count" with string_value "{scope.cores}", or other numbers of that product',
        )
    elif copies * each > scope.cores:
        yield model.finding(
            "thread-budget",
            ("parameters", *_entry(model, "intra_op_thread_count")),
            f"instances x threads within the {scope.cores} cores",
            got=f"{copies} x {each} = {copies * each}",
            fix="write fewer instances or threads, or pass --cores of the machine that serves it",
        )


def parameters(model: Model, scope: Scope) -> Iterator[Finding]:
    """Parameters that the backend reads."""
    if model.backend != "onnxruntime":
        return
    told = {key: value.string_value for key, value in model.config.parameters.items()}
    rules = [(name, _is_number, "a number") for name in NUMBERS]
    rules += [(name, _is_truth, "true, false, 1 or 0") for name in TRUTHS]
    rules += [("execution_mode", lambda text: text in ("0", "1"), "0 or 1")]
    for name, holds, expected in rules:
        if name in told and not holds(told[name]):
            yield model.finding(
                "parameter",
                ("parameters", *_entry(model, name)),
                f"{expected} as {name}",
                got=repr(str(told[name])),
                fix=f"write {expected}, or leave the parameter out",
            )


def accelerators(model: Model, scope: Scope) -> Iterator[Finding]:
    """Execution accelerators and the level of graph optimisation."""
    if model.backend != "onnxruntime":
        return
    block = model.config.optimization.execution_accelerators
    on_gpu = any(g.kind == pb.ModelInstanceGroup.KIND_GPU for g in model.config.instance_group)
    base = ("optimization", "execution_accelerators")
    known = {"cpu_execution_accelerator": ["openvino"]}
    if on_gpu:
        known["gpu_execution_accelerator"] = ["cuda", "tensorrt"]
    for side, names in known.items():
        for place, each in enumerate(getattr(block, side)):
            if each.name not in names:
                yield model.finding(
                    "accelerator",
                    (*base, side, place, "name"),
                    f"one of {', '.join(names)}",
                    got=repr(str(each.name)),
                    fix="name one of these, or leave it out",
                )
    level = model.config.optimization.graph.level
    if level in LEVELS or abs(level) > 2:
        yield model.finding(
            "graph-level",
            ("optimization", "graph", "level"),
            "a level whose meaning is plain: 0 (or none) is all optimisations",
            got=f"{level}, which is {LEVELS.get(level, 'all, as 0 is')}",
            fix="leave it out, unless that is what you want",
        )


def elsewhere(model: Model, scope: Scope) -> Iterator[Finding]:
    """What depends on how or where the server was started."""
    config = model.config
    if config.response_cache.enable:
        yield model.finding(
            "response-cache",
            ("response_cache",),
            "a server that was started with --cache-config",
            got="response_cache, which is without effect otherwise",
            fix="start the server with --cache-config local,size=BYTES",
        )
    for library in config.model_operations.op_library_filename:
        if not Path(library).is_file():
            yield model.finding(
                "op-library",
                ("model_operations", "op_library_filename"),
                "a library of operators at that path in the machine that serves it",
                got=f"{str(library)!r}, which is not there in this one",
                fix="put it there",
            )
    fields = {
        "a sequence's state": config.sequence_batching.state and ("sequence_batching", "state"),
        "batch_input": config.batch_input and ("batch_input",),
        "batch_output": config.batch_output and ("batch_output",),
        "decoupled answers": config.model_transaction_policy.decoupled
        and ("model_transaction_policy",),
        "ragged inputs": any(i.allow_ragged_batch for i in config.input) and ("input",),
    }
    for what, steps in fields.items() if model.backend == "onnxruntime" else ():
        if steps:
            yield model.finding(
                "embedded",
                steps,
                "what the server without Docker serves, too",
                got=f"{what}, which it refuses",
                fix="serve it with NVIDIA's image: tlexport serve --server docker",
            )


def _number(model: Model, name: str) -> int | None:
    """A number among the parameters: 0 where there is none, None where it is no number."""
    text = model.config.parameters[name].string_value if name in model.config.parameters else "0"
    return int(text) if _is_number(text) else None


def _entry(model: Model, key: str) -> tuple[int, ...]:
    """Where the parameter of that name stands among the parameters."""
    for place, field in enumerate(model.text.all(("parameters",))):
        if any(f.name == "key" and key in model.text.text[f.start : f.end] for f in field.fields):
            return (place,)
    return ()


def _is_number(text: str) -> bool:
    return INTEGER.fullmatch(text) is not None


def _is_truth(text: str) -> bool:
    return text.lower() in ("true", "false", "1", "0")


RULES = (batches, priorities, instances, threads, parameters, accelerators, elsewhere)
