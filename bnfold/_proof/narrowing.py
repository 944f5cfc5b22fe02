"""The check that what a fold rounds to a narrower type was rounded to it anyway.

A tensor x of a narrow type is cast to a wide one, and a map A stood behind that. Now the tensor
holds ``A(x)``, rounded. That is right where all that was computed from ``A(x)`` was rounded to the
narrow type as well, before anything enlarged its error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from bnfold._onnx.read.scopes import Scope, label, reads, type_of
from bnfold._onnx.write.applied import Applied
from bnfold._proof.checked_model import CheckedModel, chain_between, follow
from bnfold._proof.evidence import Mismatch
from bnfold._proof.full_rank_maps import FullRankMap

_OWN = ("", "ai.onnx")
_NAMES = """
    Abs Clip Concat DepthToSpace Dropout Expand Flatten Gather GlobalMaxPool Identity Max MaxPool
    Min Neg ReduceMax ReduceMin Relu Reshape Slice SpaceToDepth Split Squeeze Transpose Unsqueeze
"""
_PICKS = frozenset(_NAMES.split())
"""What puts out numbers that it reads, their absolute values, or bounds."""
_SLOPED = frozenset(("LeakyRelu", "PRelu"))
# Axes enough for the constants of any map: only its numbers are asked for.
_RANK = 8


def require_rounded_anyway(
    before: CheckedModel,
    after: CheckedModel,
    cast: NodeProto,
    narrow: int,
    steps: Sequence[Applied],
) -> None:
    """Raise `Mismatch` where the result of a map is rounded now and was not before.

    The map stood in the wide type, behind a Cast to it. It was carried back across the Cast, and so
    its result is rounded to the ``narrow`` type.

    ``steps`` are all steps of its graph. The ways from the Cast on are followed in the
    original. On each of them the first operator that no map crossed is the map itself; a way that
    comes to a Cast back before has its map in the narrow type.
    """
    scope = before.scopes[steps[0].path]
    crossed = {step.into for step in steps if step.law == "cross"}
    chains = {place: step for step in steps for place in step.chain if step.law != "absorb"}
    waiting: list[tuple[str, bool, str]] = [(cast.output[0], False, "")]
    seen = set(waiting)
    while waiting:
        name, met, mixed = waiting.pop()
        if met and (name in scope.outputs or name in scope.captures):
            raise Mismatch(f"{name} is kept in a wider type, and {cast.input[0]} was rounded")
        for place in dict.fromkeys(scope.readers.get(name, ())):
            node = scope.nodes[place]
            if name not in reads(node) or _rounds(before, scope, node, narrow):
                continue
            now, terms = met, mixed
            if place in chains and place not in crossed:
                if not _only_turns_signs(after, chains[place]):
                    raise Mismatch(f"a part of {label(node)} stands in a wider type")
                if mixed:
                    raise Mismatch(f"{mixed} puts together numbers that were rounded first")
                now = True
            elif not _picks(before, scope, node):
                if met:
                    raise Mismatch(f"{label(node)} reads in a wider type what was rounded")
                terms = mixed if type_of(node) in _SLOPED else label(node)
            found = [(output, now, terms) for output in node.output if output]
            waiting += [each for each in found if each not in seen]
            seen.update(found)


def require_exact(model: CheckedModel, scope: Scope, cast: NodeProto) -> None:
    """Raise `Mismatch` unless a Cast to a narrower type undoes one from it.

    A map that stood ahead went past the Cast. Where somebody computed in the wide type, numbers
    would be rounded before the map now that were rounded behind it.
    """
    writer = scope.writer(cast.input[0])
    if type_of(writer) != "Cast" or not _rounds(
        model, scope, cast, model.shapes.type(scope, writer.input[0])
    ):
        raise Mismatch(f"a map went past {label(cast)}, which rounds")


def _rounds(model: CheckedModel, scope: Scope, node: NodeProto, narrow: int) -> bool:
    own = node.op_type in ("Cast", "CastLike") and node.domain in _OWN
    return own and model.shapes.type(scope, node.output[0]) == narrow


def _picks(model: CheckedModel, scope: Scope, node: NodeProto) -> bool:
    own = node.domain in _OWN and node.op_type in _PICKS
    return own or model.is_no_cast(scope, node)


def _only_turns_signs(after: CheckedModel, step: Applied) -> bool:
    """Whether what is left of a chain of maps changes nothing but signs."""
    new = after.scopes[step.path]
    left = FullRankMap.identity(_RANK)
    for node in chain_between(after, new, step.source, step.output):
        follow(after, new, node, left)
    return bool((np.abs(left.scale) == 1).all() and (left.shift == 0).all())
