"""Bugs in what the proof by relation knows of operators that other tools write: `_relation`."""

from __future__ import annotations

from .planting import Mutant

FUSED = "tests/relation/test_fused.py"
JOINING = "tests/relation/test_joining.py"
TURNING = "tests/relation/test_turning.py"

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
    Mutant(
        "an axis of transposed data is that of the data",
        "_relation/turning.py",
        'return {"axis": order[axis]}',
        'return {"axis": axis % len(order)}',
        TURNING,
    ),
    Mutant(
        "axes that a reduction takes of transposed data are those of the data",
        "_relation/turning.py",
        "tuple(sorted(order[axis] for axis in axes))",
        "tuple(sorted(axes))",
        TURNING,
    ),
    Mutant(
        "ranges of transposed data are those of the data",
        "_relation/turning.py",
        "moved = tuple(order[axis] for axis in axes)",
        "moved = axes",
        TURNING,
    ),
    Mutant(
        "of two data the second one is transposed as the first is",
        "_relation/turning.py",
        "left = tuple(each.order[axis] for axis in back)",
        "left = tuple(each.order[axis] for axis in order)",
        TURNING,
    ),
    Mutant(
        "a running sum goes number by number",
        "_relation/turning.py",
        '*("Abs", "Add", "And"',
        '*("Abs", "CumSum", "Add", "And"',
        TURNING,
    ),
    Mutant(
        "a Softmax of old opsets goes along one axis",
        "_relation/turning.py",
        'in ("Softmax", "LogSoftmax") and scope.opset < 13',
        'in ("Softmax", "LogSoftmax") and scope.opset < 9',
        TURNING,
    ),
    Mutant(
        "data of fewer axes are transposed with the others",
        "_relation/turning.py",
        "if len(ranks) != 1 or all(",
        "if all(",
        TURNING,
    ),
    Mutant(
        "the batch of a product is not transposed",
        "_relation/turning.py",
        'for key in ("transBatchA", "transBatchB")):',
        "for key in ()):",
        TURNING,
    ),
    Mutant(
        "a shift stays where it is ahead of a Transpose",
        "_relation/roots.py",
        "(_turned(v, order) for v in (term.scale, data.shift, data.mass))",
        "(_turned(term.scale, order), data.shift, data.mass)",
        TURNING,
    ),
    Mutant(
        "axes of one number are taken for others of transposed data",
        "_relation/moving.py",
        "order[place] = places[sorted(wide).index(axis)]",
        "order[place] = places[wide.index(axis)]",
        TURNING,
    ),
    Mutant(
        "a scale between two Casts of integers is one behind them",
        "_relation/walk.py",
        "if kind not in tensors.FLOATS and not roots.is_plain(value):",
        "if False:",
        TURNING,
    ),
    Mutant(
        "float32 holds all integers of 32 bits",
        "_relation/walk.py",
        "TensorProto.INT32: (TensorProto.DOUBLE,",
        "TensorProto.INT32: (TensorProto.FLOAT, TensorProto.DOUBLE,",
        TURNING,
    ),
    Mutant(
        "every part that begins where the data do is all of them",
        "_relation/places.py",
        "if (start, end, step) != (0, LAST, 1):",
        "if (start, step) != (0, 1):",
        TURNING,
    ),
    Mutant(
        "the column of a block counts most",
        "_relation/joining.py",
        "for row, column in itertools.product(range(block), repeat=2):",
        "for column, row in itertools.product(range(block), repeat=2):",
        JOINING,
    ),
    Mutant(
        "what begins as a part does is that part",
        "_relation/joining.py",
        "if list(taken[place : place + size]) != list(range(first, first + size)):",
        "if len(taken) < place + size:",
        JOINING,
    ),
    Mutant(
        "a Gather takes parts along any axis",
        "_relation/joining.py",
        "axis % joined.rank != joined.axis:\n            return None\n        return [",
        "False:\n            return None\n        return [",
        JOINING,
    ),
    Mutant(
        "a Slice takes every number of its range",
        "_relation/joining.py",
        "return range(sum(joined.sizes))[start:end:step]",
        "return range(sum(joined.sizes))[start:end]",
        JOINING,
    ),
    Mutant(
        "parts that are taken stay in their order",
        "_relation/joining.py",
        "        parts.append(joined.parts[number])",
        "        parts.insert(0, joined.parts[number])",
        JOINING,
    ),
)
