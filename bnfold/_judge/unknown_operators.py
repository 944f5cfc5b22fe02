"""The stage where onnxruntime does not know an operator: both models are cut there.

What the operator reads is compared, and what lies behind what it writes is compared on drawn
values, the same for both. That decides all but the operator itself, which has to be the same one in
both models.
"""

from __future__ import annotations

import re
from dataclasses import replace

import onnx

from bnfold._judge.bench import NotLoadedError, Pair, Terms
from bnfold._run.cut import cuts
from bnfold._run.draws import FixedDraws
from bnfold._run.endings import Endings
from bnfold._run.libraries import Kind, imported, is_defined, kind_of, unknown_operators
from bnfold._run.ports import alike_in_ports

_MOST_TOLD = 4


def cut_apart(pair: Pair, terms: Terms, error: NotLoadedError) -> tuple[list[Pair], str]:
    """The two models without the operators that onnxruntime does not run, and a note about that.

    These are operators that it does not know, and the one that it has no kernel for. There may be
    several ways to cut, likelier ones first: sizes of what such an operator writes are not known.
    There is none where the two models do not have the same operators, inputs and outputs.
    """
    original, folded = pair.original.proto(), pair.folded.proto()
    kinds: set[Kind] = unknown_operators(original, terms.bounds)
    kinds |= _without_kernel(original, folded, error.why)
    kinds = kinds if alike_in_ports(original, folded) else set()
    draws = FixedDraws(terms.settings.seed)
    ways = []
    for alike in (False, True):
        cut = cuts(original, folded, kinds, alike) if kinds else None
        if cut is not None and (cut[0].like or not alike):
            left, right = (
                replace(side, edits=(*side.edits, each, *((draws,) if alike else ())), parsed=None)
                for side, each in zip((pair.original, pair.folded), cut, strict=True)
            )
            filled = [*pair.filled, *cut[0].inputs]
            ways.append(replace(pair, original=left, folded=right, filled=filled))
    names = sorted(f"{domain}::{name}" if domain else name for domain, name in kinds)
    more = ", …" if len(names) > _MOST_TOLD else ""
    note = (
        f"onnxruntime does not run {', '.join(names[:_MOST_TOLD])}{more}: the two are compared at "
        "what it reads, and behind what it writes on drawn values; --ops-library FILE runs it"
    )
    return ways, note


def _without_kernel(original: onnx.ModelProto, folded: onnx.ModelProto, why: str) -> set[Kind]:
    """The operators that the engine names where it does not load a model, if ONNX does not define
    them and all constants they read are kept.

    onnxruntime knows them. So a fold may have changed their weights, and then what they read is not
    to be compared. Of two domains that have the type the name of the node tells which is meant.
    """
    versions, words = imported(original), set(re.findall(r"[^\s'\"(),:]+", why))
    told = [node for node in original.graph.node if node.op_type in words]
    if len({kind_of(node) for node in told}) > 1:
        told = [node for node in told if node.name in words]
    return {
        kind
        for kind in {kind_of(node) for node in told}
        if not is_defined(kind, versions) and _keep_constants(original, folded, kind)
    }


def _keep_constants(original: onnx.ModelProto, folded: onnx.ModelProto, kind: Kind) -> bool:
    """Whether two models have the same operators of a kind, with the same constants."""
    nodes, others = (
        [node for node in model.graph.node if kind_of(node) == kind] for model in (original, folded)
    )
    endings = Endings(original, folded)
    return len(nodes) == len(others) and all(
        endings.same_constants(one, other) for one, other in zip(nodes, others, strict=True)
    )
