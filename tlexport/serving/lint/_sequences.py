"""Rules of sequence batching: its control inputs."""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc import model_config_pb2 as pb

from tlexport.serving.lint._finding import Finding
from tlexport.serving.lint._model import Model, Scope, written

SIGNS = ("CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_READY")


def controls(model: Model, scope: Scope) -> Iterator[Finding]:
    """Each control is of one kind, has its values, and is an input of shape [1]."""
    seen: set[str] = set()
    for place, each in enumerate(model.config.sequence_batching.control_input):
        where = ("sequence_batching", "control_input", place)
        for control in each.control:
            kind = pb.ModelSequenceBatching.Control.Kind.Name(control.kind)
            values = (control.int32_false_true, control.fp32_false_true, control.bool_false_true)
            if kind in seen:
                yield _wrong(model, where, f"{kind} once", "a second one", "leave it out")
            seen.add(kind)
            if kind in SIGNS and sum(len(value) == 2 for value in values) != 1:
                fix = "write for example fp32_false_true: [ 0, 1 ]"
                yield _wrong(model, where, f"two values for {kind}", "not that", fix)
        for _, graph in model.whole[-1:] if each.control else []:
            tensor = graph.inputs.get(each.name)
            if tensor is None:
                names = ", ".join(graph.inputs)
                yield _wrong(
                    model, where, f"an input of the model: {names}", repr(str(each.name)), "name it"
                )
                continue
            shape = tensor.shape[1:] if model.config.max_batch_size else tensor.shape
            if shape != (1,):
                fix = "let the model take it as [batch, 1]"
                yield _wrong(model, where, f"shape [1] of {each.name!r}", written(shape), fix)


def _wrong(model: Model, where: tuple[str | int, ...], *words: str) -> Finding:
    expected, got, fix = words
    return model.finding("sequence-control", where, expected, got=got, fix=fix)


RULES = (controls,)
