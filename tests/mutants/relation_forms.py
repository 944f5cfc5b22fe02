"""Bugs in what the proof by relation knows of operators that other tools write: `_relation`."""

from __future__ import annotations

from .planting import Mutant

FUSED = "tests/relation/test_fused.py"

MUTANTS = (
    Mutant(
        "a norm behind a sum adds as much as one of ONNX if it does not say it",
        "_relation/lowering.py",
        '.get("epsilon", 1e-12)',
        '.get("epsilon", 1e-5)',
        FUSED,
    ),
    Mutant(
        "a norm behind a sum has no bias",
        "_relation/lowering.py",
        '    value = writer.node("Add", [data, skip], node)\n    if bias:',
        '    value = writer.node("Add", [data, skip], node)\n    if False:',
        FUSED,
    ),
    Mutant(
        "a norm puts out the sum ahead of its bias",
        "_relation/lowering.py",
        "writer.nodes[-1].output[0] = value = node.output[3]",
        "writer.nodes[0].output[0] = value = node.output[3]",
        FUSED,
    ),
    Mutant(
        "a simplified norm takes the mean away",
        "_relation/lowering.py",
        "return _normalized(writer, node, node.input[0], (node.input[1], ",
        'centred = writer.node("Sub", [node.input[0], _mean(writer, node, node.input[0])], node)\n'
        "    return _normalized(writer, node, centred, (node.input[1], ",
        FUSED,
    ),
    Mutant(
        "a product of integers has no zero of its weights",
        "_relation/lowering.py",
        "product = list(read) if read[3] else",
        "product = list(read) if False else",
        FUSED,
    ),
    Mutant(
        "a size that is not told is any size",
        "_relation/proof.py",
        "return max(dim.dim_value, 0)",
        "return 0",
        FUSED,
    ),
)
