"""The Slices of a model by the number of looks after which inference may go through them.

A GatherND is one of them here: both end the process where a size that they read is negative.

What a Slice takes of known sizes is no negative size. Behind it an operator may make one, such as a
pool larger than its input: then the next Slice may be gone through only after a look at that size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import ModelProto, NodeProto

from bnfold._onnx.read.scopes import bodies, type_of
from bnfold._system.records import record

# Operators of ONNX that make no negative size of sizes that are not: inference tells no shape where
# a Reshape or a ConstantOfShape asks for one (onnx 1.23).
_SOUND = """
    Abs Add And ArgMax ArgMin BatchNormalization BitShift Cast CastLike Ceil Celu Clip Concat
    Constant ConstantOfShape Cos CumSum DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum
    Elu Equal Erf Exp Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish Identity If InstanceNormalization
    IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop MatMul
    MatMulInteger Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear Range Reciprocal
    ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Round Scan
    ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign Sqrt
    Squeeze Sub Sum Tanh ThresholdedRelu Transpose Trilu Unsqueeze Where Xor
"""
_KEEPING = frozenset(_SOUND.split())
_SLICES = frozenset(("GatherND", "Slice"))
_ROUNDS = 4
"""So often the levels of Slices in functions may rise; what calls itself in turn never settles."""


@record(frozen=True)
class Slices:
    """The nodes of a model that are Slices: each in one of the ``levels``, or ``unknown``.

    After one look at the sizes with all of them hidden those of the first level may be gone
    through, after a look at what that shows those of the second. Of one in a local function that is
    unknown: inference does not tell the sizes there.
    """

    levels: Sequence[Sequence[NodeProto]]
    unknown: Sequence[NodeProto]


@record
class _Function:
    """A local function: its Slices, whether it may make negative sizes, and its Slices' level."""

    slices: list[NodeProto]
    makes: bool
    level: int = 0


def slices_of(model: ModelProto) -> Slices:
    """The Slices of a model's graphs and local functions.

    Those of a function are one level of its own at most. So they are unknown where something in it
    may make a negative size, or behind a call of it and ahead of another one.
    """
    functions = _functions(model)
    held = [function for function in functions.values() if function.slices]
    for _ in range(_ROUNDS):
        levels: dict[int, list[NodeProto]] = {}
        before = [function.level for function in held]
        _collect(model.graph.node, {}, levels, functions)
        if before == [function.level for function in held]:
            break
    else:
        for function in held:
            function.makes = True
        levels = {}
        _collect(model.graph.node, {}, levels, functions)
    unknown: list[NodeProto] = []
    for function in held:
        (unknown if function.makes else levels.setdefault(function.level, [])).extend(
            function.slices
        )
    count = max(levels, default=-1) + 1
    return Slices([levels.get(number, []) for number in range(count)], unknown)


def _functions(model: ModelProto) -> dict[str, _Function]:
    """The local functions of a model, by the type of their calls; overloads count as one."""
    own: dict[str, list[NodeProto]] = {}
    for function in model.functions:
        own.setdefault(type_of(function), []).extend(_all(function.node))
    within = {type_of(node) for nodes in own.values() for node in nodes} & own.keys()
    found = {}
    for kind, nodes in own.items():
        # Where functions call each other, nothing is known of when.
        nested = kind in within or any(type_of(node) in own for node in nodes)
        slices = [node for node in nodes if _is_slice(node, own)]
        found[kind] = _Function(slices, nested or any(map(_makes, nodes)))
    return found


def _all(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    for node in nodes:
        yield node
        for _, body in bodies(node):
            yield from _all(body.node)


def _is_slice(node: NodeProto, functions: Iterable[str]) -> bool:
    kind = type_of(node)
    return kind in _SLICES and kind not in functions


def _makes(node: NodeProto) -> bool:
    """Whether an operator may make a negative size."""
    return node.domain in ("", "ai.onnx") and node.op_type not in _KEEPING


def _collect(
    nodes: Iterable[NodeProto],
    steps: dict[str, int],
    levels: dict[int, list[NodeProto]],
    functions: dict[str, _Function],
) -> int:
    """Add the Slices of some nodes to their levels, and raise the levels of functions.

    ``steps`` has a number for each name: twice the level of what reads it, and one more behind a
    Slice of that level. Gives the largest one.
    """
    furthest = 0
    for node in nodes:
        step = max((steps.get(name, 0) for name in node.input[:]), default=0)
        kind = type_of(node)
        function = functions.get(kind)
        for _, body in bodies(node):
            steps.update(dict.fromkeys((value.name for value in body.input), step))
            step = max(step, _collect(body.node, steps, levels, functions))
        if function is not None:
            if function.makes:
                step += step % 2
            elif function.slices:
                function.level = max(function.level, step // 2)
                step = 2 * function.level + 1
        elif kind in _SLICES:
            levels.setdefault(step // 2, []).append(node)
            step |= 1
        elif _makes(node):
            step += step % 2
        steps.update(dict.fromkeys(node.output[:], step))
        furthest = max(furthest, step)
    return furthest
