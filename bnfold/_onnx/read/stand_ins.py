"""Operators of ONNX that have the shapes of those of other domains, for ONNX's shape inference.

ONNX infers nothing behind an operator of another domain. Here such an operator, in a copy of the
model that is made for inference alone, becomes one of ONNX that puts out the same shape.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from bnfold._onnx.read import attributes
from bnfold._onnx.read.scopes import bodies

_DOMAIN = "com.microsoft"
_SAME = (
    "BiasAdd",
    "BiasDropout",
    "BiasGelu",
    "BiasSoftmax",
    "FastGelu",
    "Gelu",
    "GroupNorm",
    "QuickGelu",
    "SkipGroupNorm",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)
_WITH_EINSUM = 12


def stand_in(graph: GraphProto, opset: int, functions: Collection[tuple[str, str]]) -> None:
    """Replace operators of other domains, in a graph and its bodies, in place.

    The nodes keep their places and names. Calls of the local ``functions`` stay.
    """
    for node in graph.node:
        for _, body in bodies(node):
            stand_in(body, opset, functions)
        if (node.domain, node.op_type) in functions or not node.input:
            continue
        if node.domain == _DOMAIN:
            _replace(node, opset)
        elif (node.domain, node.op_type) == ("ai.onnx.ml", "Scaler"):
            _become(node, "Cast", 1)
            node.attribute.add(name="to", type=AttributeProto.INT, i=TensorProto.FLOAT)


def _replace(node: NodeProto, opset: int) -> None:
    kind = node.op_type
    if kind in _SAME:
        _become(node, "Identity", 1)
    elif kind == "FusedConv":
        _become(node, "Conv", 3, "auto_pad dilations group kernel_shape pads strides")
    elif kind == "FusedGemm":
        _become(node, "Gemm", 3, "alpha beta transA transB")
    elif kind in ("FusedMatMul", "TransposeMatMul"):
        _replace_product(node, opset)


def _replace_product(node: NodeProto, opset: int) -> None:
    """A product of transposed operands is an Einsum: ``[M, batch…, K]`` of transBatchA is
    ``m...k``. A vector, which nothing transposes, leaves the shape unknown then.
    """
    left, right = (_word(node, side, letters) for side, letters in (("A", "mk"), ("B", "kn")))
    if (left, right) == ("...mk", "...kn"):
        _become(node, "MatMul", 2)
    elif opset >= _WITH_EINSUM:
        _become(node, "Einsum", 2)
        equation = f"{left},{right}->...mn"
        node.attribute.add(name="equation", type=3, s=equation.encode())


def _word(node: NodeProto, side: str, letters: str) -> str:
    """The word of an Einsum for an operand, whose last axes are ``letters`` as it is multiplied."""
    last = letters[::-1] if attributes.integer(node, f"trans{side}", 0) else letters
    batch = attributes.integer(node, f"transBatch{side}", 0)
    return f"{last[0]}...{last[1]}" if batch else f"...{last}"


def _become(node: NodeProto, kind: str, inputs: int, kept: str = "") -> None:
    node.op_type, node.domain = kind, ""
    del node.input[inputs:], node.output[1:]
    given = [a for a in node.attribute if a.name in kept.split()]
    del node.attribute[:]
    node.attribute.extend(given)
