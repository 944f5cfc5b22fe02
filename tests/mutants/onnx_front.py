"""Bugs in what stands in front of a network: `_onnx/front`, and who compares with it."""

from __future__ import annotations

from .planting import Mutant

MUTANTS = (
    Mutant(
        "an order of channels is taken the other way round in weights",
        "_onnx/front/permuting.py",
        "order = tuple(int(k) for k in np.argsort(indices))",
        "order = tuple(int(k) for k in indices)",
        "tests/front/test_weights.py",
    ),
    Mutant(
        "means come in the network's order where channels come in the camera's",
        "_onnx/front/prepending.py",
        "numbers = numbers[back]",
        "pass",
        "tests/front/test_weights.py",
    ),
    Mutant(
        "the bias of a depthwise convolution keeps its order",
        "_onnx/front/permuting.py",
        "walk.edit(node, 2, 0, order)",
        "pass",
        "tests/front/test_weights.py",
    ),
    Mutant(
        "axes are turned the other way round",
        "_onnx/front/ports.py",
        "tuple(map(self.given.index, layout))",
        "tuple(map(layout.index, self.given))",
        "tests/front/test_weights.py",
    ),
    Mutant(
        "an output in another order is let pass",
        "_onnx/front/permuting.py",
        "if name in self.scope.outputs:",
        "if False:",
        "tests/front/test_weights.py",
    ),
    Mutant(
        "a Transpose goes that others see",
        "_onnx/front/prepending.py",
        "if any(node.output[0] in scope.outputs for node in nodes):",
        "if False:",
        "tests/front/test_weights.py",
    ),
    Mutant(
        "a weight that a caller may override is reordered",
        "_onnx/front/permuting.py",
        "or found.protected or found.sparse",
        "or found.sparse",
        "tests/front/test_weights.py",
    ),
    Mutant(
        "the operand that a Gemm adds is no reader",
        "_onnx/front/permuting.py",
        "== 1 or rule is _pointwise",
        ">= 1 or rule is _pointwise",
        "tests/front/test_weights.py",
    ),
    Mutant(
        "what a body captures is let pass",
        "_onnx/front/permuting.py",
        "if name in self.scope.captures:",
        "if False:",
        "tests/front/test_weights.py",
    ),
    Mutant(
        "the mean that is taken out has the other sign",
        "_onnx/front/exposing.py",
        "-found.shift / found.scale + 0.0",
        "found.shift / found.scale + 0.0",
        "tests/front/test_command.py",
    ),
    Mutant(
        "a tensor that is read twice is taken out",
        "_onnx/front/exposing.py",
        "if len(readers) != 1:",
        "if not readers:",
        "tests/front/test_command.py",
    ),
    Mutant(
        "verify compares with the original without its preprocessing",
        "_judge/end_to_end.py",
        "behind(original, settings.preprocessing, links)",
        "behind(original, (), links)",
        "tests/front/test_command.py",
    ),
    Mutant(
        "the rounding of weights is measured with those of another order",
        "_pipeline/models.py",
        "weights = front.original(planned.weights())",
        "weights = planned.weights()",
        "tests/front/test_command.py",
    ),
    Mutant(
        "the proof takes an order of channels the other way round",
        "_relation/linear.py",
        "made: Array = np.eye(count)[order][:, :, None]",
        "made: Array = np.eye(count)[order].T[:, :, None]",
        "tests/front/test_proof.py",
    ),
    Mutant(
        "the proof takes any axis for that of channels",
        "_relation/linear.py",
        "or axis % rank not in (1, rank - 1) or",
        "or",
        "tests/front/test_proof.py",
    ),
    Mutant(
        "the proof forgets what padding sees of a shift ahead of an order",
        "_relation/series.py",
        "return replace(moved, terms=(*made, *rest))",
        "return replace(moved, terms=tuple(made))",
        "tests/front/test_proof.py",
    ),
)
