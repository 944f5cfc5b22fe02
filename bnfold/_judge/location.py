"""Finds where two models begin to differ.

First, tensors of the same name are compared. Each has a tolerance of its own, measured as for an
output. The first one that differs is followed back in the folded model to tensors that agree. These
have the name of a tensor of the original. Where no name helps, they have about the values of one,
and agree with it within its tolerance. The operators between are at fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from bnfold._judge.bench import EarlyVerdict, Pair, Terms, Trial
from bnfold._judge.comparison import run_and_compare
from bnfold._judge.difference import distance, is_float, magnitude, mismatch
from bnfold._judge.onnx_bench import OnnxBench
from bnfold._judge.verdict import Divergence, OutputCheck
from bnfold._onnx.read.scopes import label
from bnfold._run.nodes import own_inputs, reads
from bnfold._run.noise import Array
from bnfold._run.session import EngineError
from bnfold._run.source import Source, Tap

# How many tensors are compared at once. All of their values are in memory then.
_AT_ONCE = 128
# How far a tensor may be from one of another name to be compared with it, of its largest value.
_ALIKE = 1e-4
Judge = Callable[[Mapping[str, str]], list[OutputCheck]]
Values = Callable[[Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class Instruments:
    """How the search looks into the models.

    Attributes:
        judge: compares tensors, given as a map from names in the folded model to names in the
            original; its checks have the names in the folded model.
        original: gives the values of the original's tensors on one input set.
        folded: gives the values of the folded model's tensors on that set.
    """

    judge: Judge
    original: Values
    folded: Values


def first_difference(
    bench: OnnxBench,
    terms: Terms,
    pair: Pair,
    trials: Sequence[Trial],
    checks: Sequence[OutputCheck],
) -> Divergence | None:
    """The first tensor at which the two models of a pair differ, or None.

    None is returned where no tensor differs, or where no inner tensor can be put out. If an output
    fails, only the inputs on which it fails are used.
    """
    failing = {check.inputs for check in checks if check.status == "fail"}
    sets = [trial.inputs for trial in trials]
    inputs = [each for each in sets if not failing or each.label in failing][:1]
    rough = Terms(terms.settings, terms.bounds, lambda step: None, thorough=False)

    def judge(names: Mapping[str, str]) -> list[OutputCheck]:
        aliases = {
            name if name == other else f"{other} as {name}": name for name, other in names.items()
        }
        ours = [Tap(names[name], alias) for alias, name in aliases.items()]
        theirs = [Tap(name, alias) for alias, name in aliases.items()]
        inner = OnnxBench(pair.tapped(ours, theirs), inputs, rough)
        return [replace(c, output=aliases[c.output]) for c in run_and_compare(inner, rough).checks]

    def values(side: Source) -> Values:
        def run(names: Sequence[str]) -> dict[str, Any]:
            taps = tuple(Tap(name, name) for name in names)
            engine = bench.load(replace(side, taps=taps, alone=True))
            return dict(zip(names, engine.run(inputs[0].feeds), strict=True))

        return run

    instruments = Instruments(judge, values(pair.original), values(pair.folded))
    try:
        return locate(pair.original.proto(), pair.folded.proto(), checks, instruments)
    except (EarlyVerdict, EngineError) as error:
        bench.notes.append(f"where the two begin to differ is not known: {error}")
        return None


def locate(
    original: onnx.ModelProto,
    folded: onnx.ModelProto,
    checks: Sequence[OutputCheck],
    instruments: Instruments,
) -> Divergence | None:
    """The first tensor at which two models differ, and the operators that may cause it, or None.

    ``checks`` are the checks of the models' outputs. They name the first difference where no inner
    tensor differs.
    """
    ours, theirs = _Writers(original.graph), _Writers(folded.graph)
    outputs = {value.name for value in original.graph.output}
    common = [name for name in ours.computed() if name in theirs.makers and name not in outputs]
    agreeing: set[str] = set()
    found: OutputCheck | None = None
    for start in range(0, len(common), _AT_ONCE):
        seen = instruments.judge({name: name for name in common[start : start + _AT_ONCE]})
        found = _first_wrong(seen, common)
        wrong = {check.output for check in seen if check.status == "fail"}
        agreeing |= {check.output for check in seen} - wrong
        if found is not None:
            break
    found = found or _first_wrong(checks, ours.order)
    if found is None:
        return None
    between, ends = theirs.back(found.output, agreeing)
    unknown = [name for node in between for name in node.output if name and name != found.output]
    if unknown:
        before = [name for name in ours.computed() if name not in agreeing]
        alike = _closest_originals(instruments, before, unknown)
        seen = instruments.judge(alike) if alike else []
        agreeing |= {check.output for check in seen if check.status != "fail"}
        between, ends = theirs.back(found.output, agreeing)
    return Divergence(
        tensor=found.output,
        inputs=found.inputs,
        difference=found.difference,
        tolerance=found.tolerance,
        note=found.note,
        original=ours.writer(found.output),
        suspects=tuple(f"{label(node)} ({node.op_type})" for node in between),
        agrees=tuple(ends),
    )


class _Writers:
    """Which node of a main graph writes a tensor, and which tensors depend on its inputs."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.order = list(self.makers)
        self._varying = {value.name for value in own_inputs(graph)}
        for node in graph.node:
            if not self._varying.isdisjoint(reads(node)):
                self._varying.update(name for name in node.output if name)

    def computed(self) -> Iterator[str]:
        """Yield the tensors that depend on the inputs, in the order of the graph."""
        return (name for name in self.order if name in self._varying)

    def writer(self, name: str) -> str:
        node = self.makers.get(name)
        return f"{label(node)} ({node.op_type})" if node is not None else ""

    def back(self, name: str, agreeing: Collection[str]) -> tuple[list[onnx.NodeProto], list[str]]:
        """The nodes from a tensor back to tensors that agree, and the names of these tensors.

        The nodes are in the order of the graph. Inputs of the graph count as tensors that agree. No
        node is returned for an output that is an input or a constant.
        """
        if name not in self.makers:
            return [], [name]
        waiting, nodes, ends = [name], dict[int, onnx.NodeProto](), dict[str, None]()
        while waiting:
            node = self.makers[waiting.pop()]
            if id(node) in nodes:
                continue
            nodes[id(node)] = node
            for source in reads(node):
                if source not in self._varying:
                    continue
                if source in agreeing or source not in self.makers:
                    ends[source] = None
                else:
                    waiting.append(source)
        places = {id(node): n for n, node in enumerate(self.makers.values())}
        return sorted(nodes.values(), key=lambda node: places[id(node)]), list(ends)


def _first_wrong(checks: Sequence[OutputCheck], order: Sequence[str]) -> OutputCheck | None:
    places = {name: n for n, name in enumerate(order)}
    wrong = [check for check in checks if check.status == "fail"]
    return min(wrong, key=lambda check: places.get(check.output, len(places)), default=None)


def _closest_originals(
    instruments: Instruments, before: Sequence[str], unknown: Sequence[str]
) -> dict[str, str]:
    """For tensors of the folded model, the closest tensor of the original, by name.

    A tensor is left out if none of the original's has about its values.
    """
    made = instruments.folded(unknown)
    found = dict[str, tuple[float, str]]()
    for start in range(0, len(before), _AT_ONCE):
        originals = instruments.original(before[start : start + _AT_ONCE])
        for name, values in made.items():
            apart = [(_relative_distance(one, values), other) for other, one in originals.items()]
            found[name] = min([found.get(name, (math.inf, "")), *apart], key=lambda pair: pair[0])
    return {name: other for name, (apart, other) in found.items() if apart <= _ALIKE}


def _relative_distance(one: Any, other: Any) -> float:
    """How far two tensors differ, relative to the largest value.

    The result is infinite where the two cannot be compared.
    """
    if mismatch(one, other) or one.size < 2:
        return math.inf
    array: Array = one
    if not is_float(array):
        return 0.0 if np.array_equal(array, other) else math.inf
    apart, largest = distance(array, other), magnitude(array)
    return apart / largest if largest else (math.inf if apart else 0.0)
