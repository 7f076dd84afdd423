"""Rules of ensembles: steps that fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from tritonclient.grpc import model_config_pb2 as pb

from tlexport.serving.lint._finding import Finding
from tlexport.serving.lint._model import Model, Scope, fits, written
from tlexport.serving.pipeline import around_step, pipeline_of

STEPS = ("ensemble_scheduling", "step")


def fields(model: Model, scope: Scope) -> Iterator[Finding]:
    """What only an ensemble has, and what it must not have."""
    config = model.config
    is_one = config.platform == "ensemble"
    has_steps = config.HasField("ensemble_scheduling")
    wrong: list[tuple[tuple[str, ...], str, str]] = []
    if is_one and not config.ensemble_scheduling.step:
        wrong.append((STEPS, "steps in an ensemble", "none"))
    if has_steps and not is_one:
        got = "ensemble_scheduling in another model"
        wrong.append((STEPS[:1], 'platform: "ensemble" beside ensemble_scheduling', got))
    for field in ("instance_group", "model_warmup") if is_one else ():
        if getattr(config, field):
            wrong.append(((field,), f"no {field}: the steps' models have their own", "one"))
    for where, expected, got in wrong:
        fix = "write what the left side says, or leave it out"
        yield model.finding("ensemble-field", where, expected, got=got, fix=fix)
    for place, step in enumerate(config.ensemble_scheduling.step):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                yield model.finding(
                    "ensemble-step",
                    (*STEPS, place),
                    f"a {field} in each step",
                    got="none",
                    fix=f"write {field}",
                )


def steps(model: Model, scope: Scope) -> Iterator[Finding]:
    """The models of the steps: there, in the version, with these tensors."""
    for place, step in enumerate(model.config.ensemble_scheduling.step):
        where = (*STEPS, place)
        if not step.model_name:
            continue
        member = scope.models.get(step.model_name)
        if member is None:
            yield model.finding(
                "ensemble-step",
                (*where, "model_name"),
                f"a model of this repository: {', '.join(scope.models)}",
                got=repr(str(step.model_name)),
                fix="name one of these",
            )
            continue
        if model.name in _below(member, scope):
            yield model.finding(
                "ensemble-step",
                (*where, "model_name"),
                "steps that do without the ensemble itself",
                got=repr(str(step.model_name)),
                fix="name the model that does the work",
            )
        if step.model_version != -1 and step.model_version not in member.served:
            yield model.finding(
                "ensemble-step",
                (*where, "model_version"),
                f"a version that is served, {', '.join(map(str, member.served))}, or -1",
                got=str(step.model_version),
                fix="package the model again: its pipeline belongs to that version of each step"
                if model.name in (pipeline_of(member.name), around_step(member.name))
                else "write model_version: -1",
            )
        yield from _maps(model, where, step, member)
        yield from _batches(model, where, member)


def _below(model: Model, scope: Scope) -> set[str]:
    """The names of all models that one is made of, its own as well."""
    found: set[str] = set()
    left = [model.name]
    while left:
        name = left.pop()
        if name not in found and name in scope.models:
            left += [s.model_name for s in scope.models[name].config.ensemble_scheduling.step]
        found.add(name)
    return found


def _maps(
    model: Model, where: tuple[str | int, ...], step: Any, member: Model
) -> Iterator[Finding]:
    if not member.complete:
        return
    known = {
        "input_map": [block.name for block in member.completed.input],
        "output_map": [block.name for block in member.completed.output],
    }
    for field, names in known.items():
        given = getattr(step, field)
        strange = [name for name in given if name not in names]
        optional = [block.name for block in member.completed.input if block.optional]
        left = [n for n in names if n not in given and n not in optional and field == "input_map"]
        if strange or (left and given):
            yield model.finding(
                "ensemble-map",
                (*where, field),
                f"the tensors of {member.name!r} as keys: {', '.join(names)}",
                got=", ".join(given),
                fix="write the model's names as keys, and every input of it",
            )


def _batches(model: Model, where: tuple[str | int, ...], member: Model) -> Iterator[Finding]:
    own, other = model.config.max_batch_size, member.completed.max_batch_size
    if 0 < other < own:
        yield model.finding(
            "ensemble-batch",
            ("max_batch_size",),
            f"at most {other}, as step {member.name!r} takes",
            got=str(own),
            fix=f"write max_batch_size: {other}",
        ).mended(*model.text.set(("max_batch_size",), str(other)))
    if (own == 0) != (other == 0) and member.complete:
        yield model.finding(
            "ensemble-batching",
            where,
            "an ensemble that batches as its steps do",
            got=f"max_batch_size {own} around {other} in {member.name!r}",
            fix="write max_batch_size: 0 for both, or a number for both",
        )


def flow(model: Model, scope: Scope) -> Iterator[Finding]:
    """Each tensor is given or made, once; used; and not made of itself."""
    config = model.config
    given, wanted = {b.name for b in config.input}, {b.name for b in config.output}
    made: dict[str, int] = {}
    used: set[str] = set()
    for place, step in enumerate(config.ensemble_scheduling.step):
        used |= set(step.input_map.values())
        for name in step.output_map.values():
            if name in made or name in given:
                yield _tensor(model, (*STEPS, place), f"{name!r} once", "it is made again")
            made.setdefault(name, place)
    if not config.ensemble_scheduling.step:
        return
    for place, step in enumerate(config.ensemble_scheduling.step):
        for name in sorted(set(step.input_map.values()) - given - set(made)):
            where = (*STEPS, place, "input_map")
            yield _tensor(model, where, f"{name!r} from a step or the inputs", "from nowhere")
    for name in sorted(given - used):
        yield _tensor(model, ("input",), f"a step that takes the input {name!r}", "none")
    for name in sorted(wanted - set(made)):
        yield _tensor(model, ("output",), f"a step that makes the output {name!r}", "none")
    for name in sorted(set(made) - used - wanted):
        where = (*STEPS, made[name], "output_map")
        yield _tensor(model, where, f"a step or output that takes {name!r}", "none")
    if round_ := _round(config, given):
        yield _tensor(model, STEPS, "steps one after the other", f"a circle: {', '.join(round_)}")


def _tensor(model: Model, where: tuple[str | int, ...], expected: str, got: str) -> Finding:
    fix = "mend the maps of the steps: their values are the ensemble's own names"
    return model.finding("ensemble-tensor", where, expected, got=got, fix=fix)


def _round(config: pb.ModelConfig, given: set[str]) -> list[str]:
    """Tensors that need themselves, as far as every other is there."""
    left, there = list(config.ensemble_scheduling.step), set(given)
    made = {name for step in left for name in step.output_map.values()}
    while ready := [s for s in left if set(s.input_map.values()) & made <= there]:
        left = [step for step in left if step not in ready]
        there |= {name for step in ready for name in step.output_map.values()}
    return sorted({name for step in left for name in step.output_map.values()})


class _Seen(msgspec.Struct, frozen=True):
    """How somebody describes a tensor of the ensemble."""

    who: str
    dtype: str
    dims: tuple[int, ...]
    full: tuple[int, ...]


def agreement(model: Model, scope: Scope) -> Iterator[Finding]:
    """Everybody who touches a tensor means the same by it."""
    seen: dict[str, _Seen] = {
        block.name: _seen(model, block) for block in (*model.config.input, *model.config.output)
    }
    for place, step in enumerate(model.config.ensemble_scheduling.step):
        member = scope.models.get(step.model_name)
        if member is None or not member.complete:
            continue
        for field, blocks in (
            ("input_map", member.completed.input),
            ("output_map", member.completed.output),
        ):
            known = {block.name: block for block in blocks}
            for key, name in getattr(step, field).items():
                if key in known:
                    now = _seen(member, known[key])
                    before = seen.setdefault(name, now)
                    yield from _differ(model, (*STEPS, place, field), name, (before, now))


def _seen(model: Model, block: Any) -> _Seen:
    dims = tuple(block.dims)
    full = (-1, *dims) if model.completed.max_batch_size > 0 else dims
    return _Seen(model.name, pb.DataType.Name(block.data_type), dims, full)


def _differ(
    model: Model, where: tuple[str | int, ...], name: str, sides: tuple[_Seen, _Seen]
) -> Iterator[Finding]:
    one, other = sides
    if one.dtype != other.dtype:
        yield model.finding(
            "ensemble-type",
            where,
            f"{one.dtype} for {name!r}, as in {one.who!r}",
            got=f"{other.dtype} in {other.who!r}",
            fix="write the same type on both sides, or put a step between them",
        )
    elif not fits(one.dims, other.dims) and not fits(one.full, other.full):
        yield model.finding(
            "ensemble-shape",
            where,
            f"{written(one.full)} for {name!r}, as in {one.who!r}",
            got=f"{written(other.full)} in {other.who!r}",
            fix="write the same dims on both sides, or put a step between them",
        )


RULES = (fields, steps, flow, agreement)
