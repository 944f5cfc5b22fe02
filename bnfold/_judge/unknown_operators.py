"""The stage where onnxruntime does not know an operator: both models are cut there.

What the operator reads is compared, and what lies behind what it writes is compared on drawn
values, the same for both. That decides all but the operator itself, which has to be the same one in
both models.
"""

from __future__ import annotations

import re
from dataclasses import replace

from bnfold._judge.bench import NotLoadedError, Terms
from bnfold._judge.pair import Pair
from bnfold._run.cut import Cut, cuts
from bnfold._run.libraries import Kind, unknown_operators
from bnfold._run.source import Source

_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(")
_MOST_TOLD = 4


def cut_apart(pair: Pair, terms: Terms, error: NotLoadedError) -> tuple[Pair, str] | None:
    """The two models without the operators that onnxruntime does not run, and a note about that.

    These are operators that it does not know, and the one that it has no kernel for. None where
    there are none, or where the two models do not have the same ones.
    """
    original, folded = pair.original.proto(), pair.folded.proto()
    kinds: set[Kind] = unknown_operators(original, terms.bounds)
    if missing := _NO_KERNEL.search(error.why):
        kinds |= {
            (node.domain, node.op_type)
            for node in original.graph.node
            if node.op_type == missing[1] and node.domain not in ("", "ai.onnx")
        }
    found = cuts(original, folded, kinds) if kinds else None
    if found is None:
        return None
    ours, theirs = found
    around = replace(
        pair,
        original=_edited(pair.original, ours),
        folded=_edited(pair.folded, theirs),
        filled=[*pair.filled, *ours.inputs],
    )
    names = sorted(f"{domain}::{name}" if domain else name for domain, name in kinds)
    more = ", …" if len(names) > _MOST_TOLD else ""
    note = (
        f"onnxruntime does not run {', '.join(names[:_MOST_TOLD])}{more}: the two are compared at "
        "what it reads, and behind what it writes on drawn values; --ops-library FILE runs it"
    )
    return around, note


def _edited(source: Source, cut: Cut) -> Source:
    return replace(source, edits=(*source.edits, cut), parsed=None)
