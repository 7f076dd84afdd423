"""Which versions of a model have served, and which does now."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from tritonclient.grpc import model_config_pb2 as pb

PARAMETER = "tlexport_versions"
"""JSON of a Standing: it is written with the configuration that it belongs to, in one stroke."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """`served` are the versions that have served one after another, the last of them now.

    A version that was rolled back is not among them. `last` is the highest number ever given.
    """

    served: tuple[int, ...] = ()
    last: int = 0

    @property
    def current(self) -> int | None:
        """The version that the configuration has served; None before the first."""
        return self.served[-1] if self.served else None

    def then(self, number: int) -> Standing:
        """As it is when `number` serves: after the others, or again, without those after it."""
        before = tuple(each for each in self.served if each < number)
        return Standing(served=(*before, number), last=max(self.last, number))


def admitted(found: pb.ModelConfig, numbers: Sequence[int]) -> list[int]:
    """The versions that a configuration's policy leaves of those there are, ascending."""
    policy = found.version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "specific":
        return [number for number in numbers if number in policy.specific.versions]
    if kind == "all":
        return list(numbers)
    count = policy.latest.num_versions if kind == "latest" else 1
    return list(numbers[-count:]) if count > 0 else []


def standing_of(found: pb.ModelConfig, numbers: Sequence[int]) -> Standing:
    """What a configuration tells, held against the versions there are and against its policy.

    Without the parameter all versions up to the highest that is admitted have served.
    """
    text = found.parameters[PARAMETER].string_value if PARAMETER in found.parameters else ""
    told = Standing(served=tuple(numbers))
    if text:
        try:
            told = msgspec.json.decode(text, type=Standing)
        except msgspec.DecodeError:  # somebody's own parameter
            text = ""
    last = max((told.last, *numbers), default=0)
    current = max(admitted(found, numbers), default=None)
    known = tuple(each for each in sorted(set(told.served)) if each in numbers)
    if current is None:
        return Standing(served=known if text else (), last=last)
    return msgspec.structs.replace(Standing(served=known).then(current), last=last)


def tell(found: pb.ModelConfig, standing: Standing) -> None:
    """Write the standing into a configuration."""
    found.parameters[PARAMETER].string_value = msgspec.json.encode(standing).decode()


def admit_only(found: pb.ModelConfig, numbers: Sequence[int]) -> None:
    """Have a configuration admit these versions and no other, whatever else is there."""
    found.version_policy.Clear()
    found.version_policy.specific.SetInParent()
    found.version_policy.specific.versions.extend(numbers)


def admit_next(
    built: pb.ModelConfig, before: pb.ModelConfig, numbers: Sequence[int], number: int
) -> None:
    """Have the configuration of the next version tell which served, and admit those alone.

    Where the newest that are there did not all serve, "the latest" would bring back one that was
    rolled back. Then those that serve now are admitted by number, until `number` is there, too.
    """
    keep = built.version_policy.latest.num_versions
    stand = standing_of(before, numbers).then(number)
    tell(built, stand)
    if not set([each for each in numbers if each != number][-keep:]) <= set(stand.served):
        there = number in numbers
        admit_only(built, stand.served[-keep:] if there else admitted(before, numbers))
