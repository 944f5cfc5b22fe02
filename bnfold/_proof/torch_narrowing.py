"""The check, in a PyTorch program, that what a fold rounds to a narrower type was rounded anyway.

A tensor x of a narrow type is converted to a wide one, and a map A stood behind that. Now the
tensor holds ``A(x)``, rounded. That is right where all that was computed from ``A(x)`` was rounded
to the narrow type as well, before anything enlarged its error. `narrowing` has the same for ONNX.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from bnfold._core.limits import Limits
from bnfold._onnx.write.applied import Related
from bnfold._proof.evidence import Mismatch
from bnfold._proof.torch_evaluation import BoundedValue, EvaluatedProgram
from bnfold._torch.program.applied import AppliedStep
from bnfold._torch.read.nodes import dtype_of, kind_of, shape_of, values_read
from bnfold._torch.tensors import DTYPES

_CONVERTING = ("_to", "to", "type_as")
_NAMES = """
    abs alias amax amin cat chunk clamp clamp_max clamp_min clip clone contiguous detach dropout
    expand flatten flip getitem hardtanh index_select max_pool1d max_pool2d max_pool3d movedim neg
    permute pixel_shuffle relu relu6 repeat reshape select slice split split_with_sizes squeeze
    stack t transpose unflatten unsqueeze view
"""
_PICKING = frozenset(_NAMES.split())
"""What puts out numbers that it reads, their absolute values, or bounds."""
_SLOPED = ("leaky_relu", "prelu")


@dataclass(frozen=True)
class Narrowing:
    """A program before and after some steps, as far as types are concerned."""

    before: EvaluatedProgram
    after: EvaluatedProgram
    steps: Collection[AppliedStep]
    standing: Mapping[str, str]
    related: Mapping[str, Related]

    def require(self, name: str) -> None:
        """Raise `Mismatch` where maps crossed a conversion to another type, and lose digits there
        that were not lost before. Other operators are none of its business.
        """
        node = self.before.nodes[name]
        if _kind(node) not in _CONVERTING or dtype_of(node) == dtype_of(node.all_input_nodes[0]):
            return
        source = node.all_input_nodes[0]
        read, written = (self.related.get(each.name) for each in (source, node))
        if _holds(dtype_of(node), dtype_of(source)):
            if read is not None and read.new:
                self._require_rounded_anyway(node, dtype_of(source))
        elif not _holds(dtype_of(source), dtype_of(node)):
            raise Mismatch(f"{name} does not convert a type to one that has all its numbers")
        elif written is not None and written.old and not written.new:
            ahead = source.all_input_nodes[:1] if _kind(source) in _CONVERTING else []
            if [dtype_of(each) for each in ahead] != [dtype_of(node)]:
                raise Mismatch(f"a map went past {name}, which rounds")

    def _require_rounded_anyway(self, conversion: Node, narrow: torch.dtype | None) -> None:
        """The ways from a conversion on, in the original. On each of them the first operator that
        no map crossed is the map itself; a way that comes to a conversion back before has its map
        in the narrow type.
        """
        crossed = {name for step in self.steps if step.law == "cross" for name in step.nodes}
        chains = {
            name: step
            for step in self.steps
            if step.law in ("compose", "carry")
            for name in step.nodes
        }
        waiting: list[tuple[Node, bool, str]] = [(conversion, False, "")]
        seen = set(waiting)
        while waiting:
            node, met, mixed = waiting.pop()
            for user in node.users:
                if user.op == "output" and met:
                    raise Mismatch(f"{node.name} is kept in a wider type, and was rounded")
                if user.op != "call_function" or node not in values_read(user):
                    continue
                if _kind(user) in _CONVERTING and dtype_of(user) == narrow:
                    continue
                now, terms = met, mixed
                maps = chains.get(user.name)
                if maps is not None and user.name not in crossed:
                    if not self._only_turns_signs(maps):
                        raise Mismatch(f"a part of {user.name} stands in a wider type")
                    if mixed:
                        raise Mismatch(f"{mixed} puts together numbers that were rounded first")
                    now = True
                elif _kind(user) not in (*_PICKING, *_CONVERTING):
                    if met:
                        raise Mismatch(f"{user.name} reads in a wider type what was rounded")
                    terms = mixed if _kind(user) in _SLOPED else user.name
                following = user, now, terms
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)

    def _only_turns_signs(self, step: AppliedStep) -> bool:
        """Whether what is left of a chain of maps changes nothing but signs."""
        new = [self.standing[name] for name in step.outputs if name in self.standing]
        old = [self.standing[name] for name in self.before.read(step.nodes)]
        if len(new) != 1 or len(old) != 1 or new == old:
            return new == old
        shape = [n if n is not None else 2 for n in shape_of(self.after.nodes[old[0]]) or ()]
        zeros, ones = (make(shape, dtype=torch.float64) for make in (torch.zeros, torch.ones))
        none, unit = (
            self.after.run(new[0], {old[0]: BoundedValue(each, each)}).value
            for each in (zeros, ones)
        )
        return bool((none == 0).all() and (unit.abs() == 1).all())


def _kind(node: Node) -> str:
    return kind_of(node).removesuffix("_").removesuffix("_copy")


def _holds(wide: torch.dtype | None, narrow: torch.dtype | None) -> bool:
    """Whether a type has all numbers of another one; False for what is no floating-point type."""
    if wide not in DTYPES or narrow not in DTYPES:
        return False
    return Limits.of(DTYPES[wide]).hold(Limits.of(DTYPES[narrow]))
