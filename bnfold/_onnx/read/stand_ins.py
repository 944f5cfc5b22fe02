"""Operators of ONNX that have the shapes of those of other domains, for ONNX's shape inference.

ONNX infers nothing behind an operator of another domain. Here such an operator, in a copy of the
model that is made for inference alone, becomes one of ONNX that puts out the same shape and type.

Inference follows the numbers of small vectors, too, from which sizes are computed. So none becomes
an operator that inference follows them through, such as an Identity, unless it reads no vectors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from bnfold._onnx.read import attributes
from bnfold._onnx.read.scopes import bodies, type_of
from bnfold._system.records import record

_WITH_EINSUM = 12
_WITH_INTEGERS = 10
# Each puts out a shape and a type, and no numbers that inference follows.
_LIKE, _BROADCAST = "RandomNormalLike", "Pow"
_POOL = "auto_pad ceil_mode count_include_pad kernel_shape pads strides"
_CONV = "auto_pad dilations group kernel_shape pads strides"


@record(frozen=True)
class _StandIn:
    """An operator of the type ``kind``, which reads the inputs ``places`` and has the attributes
    ``kept``. ``first``: not where channels come last.
    """

    kind: str
    places: Sequence[int] = (0,)
    kept: str = ""
    first: bool = False


def _microsoft(kinds: str, stand_in: _StandIn) -> dict[str, _StandIn]:
    return {f"com.microsoft::{kind}": stand_in for kind in kinds.split()}


# What puts out the shape and the type of its first input.
_SAME = """
    BiasAdd BiasDropout BiasGelu BiasSoftmax FastGelu Gelu GroupNorm Inverse QLinearLeakyRelu
    QLinearSigmoid QLinearSoftmax QuickGelu RotaryEmbedding SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization Trilu
"""
_STAND_INS: Mapping[str, _StandIn] = {
    **_microsoft(_SAME, _StandIn(_LIKE)),
    **_microsoft("DequantizeLinear", _StandIn("DequantizeLinear", (0, 1, 2), "axis")),
    **_microsoft("DynamicQuantizeMatMul", _StandIn("MatMul", (0, 1))),
    **_microsoft("FusedConv", _StandIn("Conv", (0, 1, 2), _CONV)),
    **_microsoft("FusedGemm", _StandIn("Gemm", (0, 1, 2), "alpha beta transA transB")),
    **_microsoft("QLinearAdd QLinearMul", _StandIn(_BROADCAST, (0, 3))),
    **_microsoft("QLinearAveragePool", _StandIn("AveragePool", (0,), _POOL, first=True)),
    **_microsoft("QLinearGlobalAveragePool", _StandIn("GlobalAveragePool", first=True)),
    **_microsoft("QLinearWhere", _StandIn("Where", (0, 1, 4))),
    **_microsoft("QuantizeLinear", _StandIn("QuantizeLinear", (0, 1, 2), "axis")),
    "ai.onnx.ml::Binarizer": _StandIn(_LIKE),
    "ai.onnx.ml::Imputer": _StandIn(_LIKE),
}
# Whose output is of float32, whatever it reads.
CASTING = ("ai.onnx.ml::Normalizer", "ai.onnx.ml::Scaler")


def stand_in(graph: GraphProto, opset: int, functions: Collection[tuple[str, str]]) -> None:
    """Replace operators of other domains, in a graph and its bodies, in place.

    The nodes keep their places and names. Calls of the local ``functions`` stay.
    """
    for node in graph.node:
        for _, body in bodies(node):
            stand_in(body, opset, functions)
        if node.domain and (node.domain, node.op_type) not in functions and node.input:
            _replace(graph, node, opset)


def _replace(graph: GraphProto, node: NodeProto, opset: int) -> None:
    kind = type_of(node)
    known = _STAND_INS.get(kind)
    if known is not None:
        if not (known.first and attributes.integer(node, "channels_last", 0)):
            _become(node, known)
    elif kind in CASTING:
        _become(node, _StandIn(_LIKE))
        node.attribute.add(name="dtype", type=AttributeProto.INT, i=TensorProto.FLOAT)
    elif kind == "com.microsoft::QLinearConcat":
        _become(node, _StandIn("Concat", range(2, len(node.input), 3), "axis"))
    elif kind == "com.microsoft::MatMulIntegerToFloat" and opset >= _WITH_INTEGERS:
        # Zero points, which may be missing, are of the types of A and B. The last one is the type
        # of the output: that of a scale.
        _become(node, _StandIn("QLinearMatMul", (0, 2, 0, 1, 3, 1, 2, 2)))
    elif kind == "com.microsoft::MatMulNBits":
        _replace_packed(graph, node)
    elif kind in ("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul"):
        _replace_product(node, opset)


def _replace_packed(graph: GraphProto, node: NodeProto) -> None:
    """A product with a packed matrix is one with a matrix of the sizes that its attributes give."""
    sizes = [attributes.integer(node, name, 0) for name in "KN"]
    matrix = f"{node.output[0]} unpacked"
    graph.initializer.add(name=matrix, data_type=TensorProto.FLOAT, dims=sizes)
    node.input[1:] = [matrix]
    _become(node, _StandIn("MatMul", (0, 1)))


def _replace_product(node: NodeProto, opset: int) -> None:
    """A product of transposed operands is an Einsum: ``[M, batch…, K]`` of transBatchA is
    ``m...k``. A vector, which nothing transposes, leaves the shape unknown then.
    """
    left, right = (_word(node, side, letters) for side, letters in (("A", "mk"), ("B", "kn")))
    if (left, right) == ("...mk", "...kn"):
        _become(node, _StandIn("MatMul", (0, 1)))
    elif opset >= _WITH_EINSUM:
        _become(node, _StandIn("Einsum", (0, 1)))
        equation = f"{left},{right}->...mn"
        node.attribute.add(name="equation", type=3, s=equation.encode())


def _word(node: NodeProto, side: str, letters: str) -> str:
    """The word of an Einsum for an operand, whose last axes are ``letters`` as it is multiplied."""
    last = letters[::-1] if attributes.integer(node, f"trans{side}", 0) else letters
    batch = attributes.integer(node, f"transBatch{side}", 0)
    return f"{last[0]}...{last[1]}" if batch else f"...{last}"


def _become(node: NodeProto, other: _StandIn) -> None:
    node.op_type, node.domain = other.kind, ""
    node.input[:] = [node.input[place] for place in other.places if place < len(node.input)]
    del node.output[1:]
    given = [a for a in node.attribute if a.name in other.kept.split()]
    del node.attribute[:]
    node.attribute.extend(given)
