"""Plants bugs in the source, one at a time, and sees the tests go red.

``python -m tests.mutants`` plants all of them, ``python -m tests.mutants NAME…`` some. Each is one
change of the text of one file, in a copy of the checkout, and names the tests that have to notice.
A text that does not stand in its file exactly once is an error, so that the table cannot rot; so is
a named test that fails without any bug. It exits with 1 if a bug goes unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__")
PATIENCE_S = 600
RED = 1
"""Pytest's exit code where tests failed; broken imports and unknown tests have others."""


@dataclass(frozen=True)
class Mutant:
    """A bug: in ``file`` of the package, ``old`` becomes ``new``, and ``tests`` have to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    @property
    def path(self) -> Path:
        """The file, from the root of a checkout."""
        return Path("bnfold", self.file)

    def planted(self, text: str) -> str:
        """The text of the file with the bug.

        Raises:
            ValueError: what it changes does not stand in it exactly once.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: {self.path} has {self.old!r} {count} times, not once")
        return text.replace(self.old, self.new)


MUTANTS = (
    # --- algebra ---------------------------------------------------------------------------------
    Mutant(
        "composition forgets the outer scale",
        "_core/affine.py",
        "shift = outer.scale * self.shift + outer.shift",
        "shift = self.shift + outer.shift",
        "tests/plan/test_affine.py",
    ),
    Mutant(
        "epsilon left out",
        "_core/affine.py",
        "np.sqrt(variance.astype(np.float64) + epsilon)",
        "np.sqrt(variance.astype(np.float64))",
        "tests/test_batchnorm.py",
    ),
    Mutant(
        "groups of a ConvTranspose taken the other way round",
        "_core/channels.py",
        "(group, cin // group, per_group, *kernel), (group, 1, ",
        "(cin // group, group, per_group, *kernel), (1, group, ",
        "tests/test_conv_transpose.py",
    ),
    Mutant(
        "a shift ahead past what was absorbed behind",
        "_core/parameters.py",
        "shift = shift + scale * self.image(ahead.shift)",
        "shift = shift + self.image(ahead.shift)",
        "tests/carry/test_ahead.py",
    ),
    Mutant(
        "the other half of a recurrent operator's bias",
        "_core/parameters.py",
        "[(0, self.bias_beyond)]",
        "[(self.bias_beyond, 0)]",
        "tests/carry/test_recurrent.py",
    ),
    Mutant(
        "one direction of a recurrent operator takes a map in",
        "_torch/read/linear.py",
        "range(0, each * directions, each)",
        "range(0, each, each)",
        "tests/torch/test_recurrent.py",
    ),
    Mutant(
        "underflow goes unseen",
        "_core/limits.py",
        "(magnitude * np.maximum(peaks, tiny) < tiny / 4)",
        "(magnitude * np.maximum(peaks, tiny) < 0)",
        "tests/test_dtypes.py",
    ),
    Mutant(
        "a map goes into float16 though something reads its result in float32",
        "_plan/conversions.py",
        "            if not (stays or isinstance(role, Carrier) or keeps_relative_errors(law)):",
        "            if False:",
        "tests/carry/test_conversions.py",
    ),
    Mutant(
        "a map goes into float16 though an output has its result in float32",
        "_plan/conversions.py",
        "        if tensor.pinned is not None:\n            message",
        "        if False:\n            message",
        "tests/carry/test_conversions.py",
    ),
    Mutant(
        "a map crosses a mean before it is rounded",
        "_plan/conversions.py",
        "        if not (plain or keeps_relative_errors(law)):",
        "        if False:",
        "tests/carry/test_conversions.py",
    ),
    Mutant(
        "a standing operator in float16 takes up a map from float32",
        "_plan/conversions.py",
        "        if left and state.row != place.state.row:",
        "        if False:",
        "tests/carry/test_conversions.py",
    ),
    Mutant(
        "a map goes forward into the narrower type",
        "_core/pointwise.py",
        "        if not (self.widens or self.exact):\n            raise",
        "        if False:\n            raise",
        "tests/carry/test_conversions.py",
    ),
    Mutant(
        "a Cast goes though another operator reads it",
        "_plan/conversions.py",
        "                if not plain or law.narrow != np.float16:",
        "                if False:",
        "tests/carry/test_conversions.py",
    ),
    Mutant(
        "the certificate does not ask which maps were carried to either side of a Cast",
        "_proof/conversions.py",
        "    if not _alike(read, written):",
        "    if False:",
        "tests/carry/test_conversions.py",
    ),
    Mutant(
        "the certificate does not ask which type is left where a Cast is gone",
        "_proof/conversions.py",
        "        if kind != narrow:",
        "        if False:",
        "tests/carry/test_conversions.py",
    ),
    Mutant(
        "a Cast to any type is the identity",
        "_onnx/read/crossed.py",
        "same = wanted and wanted == read",
        "same = wanted",
        "tests/carry/test_same_type.py",
    ),
    Mutant(
        "a function's input has the type of a Cast behind it",
        "_onnx/read/types.py",
        "    if position is None:\n        return 0, ()",
        "    if position is None:\n        return 1, ()",
        "tests/carry/test_same_type.py",
    ),
    Mutant(
        "the check of a merge takes any Cast for the identity",
        "_proof/merges.py",
        'if node.op_type in ("Cast", "CastLike") and not model.is_no_cast(scope, node):',
        "if False:",
        "tests/carry/test_same_type.py",
    ),
    Mutant(
        "a MatMul of any rank becomes a Gemm",
        "_onnx/read/linear.py",
        "matrices = len(weight.value.shape) == 2 and other is not None and len(other) == 2",
        "matrices = len(weight.value.shape) == 2 and other is not None",
        "tests/test_matmul.py",
    ),
    Mutant(
        "a MatMul of dequantized weights becomes a Gemm",
        "_onnx/read/linear.py",
        "return matrices and context.opset >= since and weight.quantized is None",
        "return matrices and context.opset >= since",
        "tests/test_quantized.py",
    ),
    Mutant(
        "a Gemm that was a MatMul keeps the constant that an Add had, whatever the bias is",
        "_onnx/write/parameters.py",
        "    return constant.dtype == values.dtype and bool((constant.load() == values).all())",
        "    return constant.dtype == values.dtype",
        "tests/test_matmul.py",
    ),
    Mutant(
        "the proof takes the bias of a Gemm that was a MatMul for none",
        "_proof/product_formulas.py",
        "        bias = _offset(case.new(2), case.twin)",
        "        bias = np.zeros(())",
        "tests/test_matmul.py",
    ),
    Mutant(
        "a map along an axis goes to all parts of a Split of unknown sizes",
        "_core/joins.py",
        "if map_.axis == self.axis:\n            raise not_known",
        "if False:\n            raise not_known",
        "tests/test_shapes.py",
    ),
    Mutant(
        "names of sizes are believed unasked",
        "_onnx/read/shapes.py",
        "    if equal_dims and symbols is not None:",
        "    if symbols is not None:",
        "tests/test_equal_dims.py",
    ),
    Mutant(
        "a vector has as many channels as elements",
        "_onnx/read/affine.py",
        "    if vector and gamma.shape != (1,):",
        "    if False:",
        "tests/test_batchnorm.py",
    ),
    Mutant(
        "a map along an axis crosses an Einsum",
        "_core/products.py",
        '        if map_.axis is not None:\n            raise not_carried(f"the map varies',
        '        if False:\n            raise not_carried(f"the map varies',
        "tests/carry/test_einsum.py",
    ),
    # --- reading ---------------------------------------------------------------------------------
    Mutant(
        "what a body captures does not count in the order of nodes",
        "_onnx/read/order.py",
        "names |= inner - own",
        "names |= set()",
        "tests/test_order.py",
    ),
    Mutant(
        "functions stay out of order",
        "_onnx/read/order.py",
        "        yield from _search(function.node, set(function.input), set())",
        "        yield from ()",
        "tests/test_order.py",
    ),
    Mutant(
        "a constant's operand along an axis is taken for one along the last",
        "_onnx/read/constants.py",
        "        if node.op_type in _EVALUATED and not misaligned:",
        "        if node.op_type in _EVALUATED:",
        "tests/test_standardized.py",
    ),
    Mutant(
        "a constant of any size is made",
        "_onnx/read/growth.py",
        "    if count > max(_LARGEST, sum(values.size for values in given)):",
        "    if False:",
        "tests/test_constants.py",
    ),
    Mutant(
        "large constants are made anew for each reader",
        "_onnx/read/constants.py",
        "            self._recent[key] = values",
        "            self._recent.clear()",
        "tests/test_constants.py",
    ),
    # --- laws ------------------------------------------------------------------------------------
    Mutant(
        "a shift through Relu",
        "_core/pointwise.py",
        'if not map_.keeps_origin:\n            raise not_carried("the shift does not pass")\n\n\n',
        "\n\n",
        "tests/carry/test_laws.py",
    ),
    Mutant(
        "a negative scale through a maximum",
        "_core/laws.py",
        "if self.positive and bool((map_.scale < 0).any()):",
        "if False:",
        "tests/carry/test_laws.py",
    ),
    Mutant(
        "the bounds of a Clip stay",
        "_core/pointwise.py",
        "return Edit({name: moved(b) for name, b in bounds.items() if b is not None})",
        "return Edit({name: b for name, b in bounds.items() if b is not None})",
        "tests/carry/test_laws.py",
    ),
    Mutant(
        "the threshold of a ThresholdedRelu stays",
        "_core/pointwise.py",
        'numbers = {"threshold": moved(self.threshold)}',
        'numbers = {"threshold": self.threshold}',
        "tests/carry/test_laws.py",
    ),
    Mutant(
        "the slope of a HardSigmoid leaves a shift alone",
        "_core/pointwise.py",
        '"beta": self.alpha * shift + self.beta',
        '"beta": shift + self.beta',
        "tests/carry/test_hard_sigmoid.py",
    ),
    Mutant(
        "a Clip that is a HardSigmoid forgets its lower bound",
        "_core/pointwise.py",
        "return Way({0: AffineMap.of(size, low, None)}, edit)",
        "return Way({0: AffineMap.of(size, 0.0, None)}, edit)",
        "tests/carry/test_hard_sigmoid.py",
    ),
    Mutant(
        "a hardsigmoid of other numbers than PyTorch's",
        "_core/pointwise.py",
        "if not _alike((law.alpha, law.beta), edit.values.values()):",
        "if False:",
        "tests/torch/test_hard_sigmoid.py",
    ),
    Mutant(
        "a shift into both summands",
        "_core/joins.py",
        "scale, numbers = _part(map_, 0)",
        "scale, numbers = _part(map_, 1)",
        "tests/carry/test_branches.py",
    ),
    Mutant(
        "a convolution of the blocked layout with an activation is a map",
        "_onnx/read/microsoft.py",
        'plain = not attributes.has(node, "activation") and not has(node, 3)',
        "plain = True",
        "tests/test_blocked_layout.py",
    ),
    Mutant(
        "ahead of the blocked layout the next best reason is given",
        "_core/operators/record.py",
        "if self.ahead else None",
        "if False else None",
        "tests/test_blocked_layout.py",
    ),
    Mutant(
        "a QLinearConcat joins its scales",
        "_onnx/read/stand_ins.py",
        "range(2, len(node.input), 3)",
        "range(0, len(node.input), 3)",
        "tests/test_stand_ins.py",
    ),
    Mutant(
        "a pool with its channels last is read as one with them first",
        "_onnx/read/stand_ins.py",
        "if not (known.first and attributes",
        "if not (False and attributes",
        "tests/test_stand_ins.py",
    ),
    Mutant(
        "a QuantizeLinear of onnxruntime puts out what it reads",
        "_onnx/read/stand_ins.py",
        '_StandIn("QuantizeLinear", (0, 1, 2), "axis")',
        '_StandIn("Identity")',
        "tests/test_stand_ins.py",
    ),
    Mutant(
        "a map along the last axis of unknown rank goes on",
        "_plan/relocation.py",
        "part.axis == LAST for part in",
        "part.axis == 99 for part in",
        "tests/test_last_axis.py",
    ),
    Mutant(
        "a constant of more axes meets the last axis of unknown rank",
        "_core/broadcast.py",
        "constant.shape in ((last,), (1,))",
        "constant.size == last",
        "tests/test_last_axis.py",
    ),
    Mutant(
        "a matrix on the left makes the last axis",
        "_core/operators/matrices.py",
        "elif other is None and right and len(fixed) == 2:",
        "elif other is None and len(fixed) == 2:",
        "tests/test_last_axis.py",
    ),
    Mutant(
        "a Scaler subtracts its offset last",
        "_onnx/read/affine.py",
        "AffineMap.of(scale, -offset * scale, axis)",
        "AffineMap.of(scale, -offset, axis)",
        "tests/test_scaler.py",
    ),
    Mutant(
        "a Scaler casts nothing",
        "_onnx/read/affine.py",
        "    if element != TensorProto.FLOAT:\n        kind",
        "    if not element:\n        kind",
        "tests/test_scaler.py",
    ),
    Mutant(
        "the features of a Scaler are those of the last axis of any tensor",
        "_onnx/read/affine.py",
        "if axis > 1 or shape[axis]",
        "if shape[axis]",
        "tests/test_scaler.py",
    ),
    Mutant(
        "the certificate forgets the offset of a Scaler",
        "_proof/checked_model.py",
        "map_.add(-(held",
        "map_.add(-0.0 * (held",
        "tests/test_scaler.py",
    ),
    Mutant(
        "a sum takes a sign in for the wrong term",
        "_core/joins.py",
        "_part(parts.get(n, IDENTITY), old, old * new)",
        "_part(parts.get(1 - n, IDENTITY), old, old * new)",
        "tests/carry/test_signs.py",
    ),
    Mutant(
        "a sign stays in a sum and goes on to its terms",
        "_core/joins.py",
        "_part(map_, new[n] * (n == taker), one * new[n])",
        "_part(map_, new[n] * (n == taker), one * new[0])",
        "tests/carry/test_signs.py",
    ),
    Mutant(
        "a shift behind a turned sum takes the sign that its term had",
        "_core/joins.py",
        "_part(map_, new[n] * (n == taker), one * new[n])",
        "_part(map_, one * (n == taker), one * new[n])",
        "tests/carry/test_signs.py",
    ),
    Mutant(
        "a difference is turned around, and its terms are not",
        "_onnx/write/parameters.py",
        "node.input[:] = [node.input[n] for n in edit.form.order]",
        "pass",
        "tests/carry/test_signs.py",
    ),
    Mutant(
        "a Gemm that read no C may read any",
        "_proof/product_formulas.py",
        "return c is None and beta != 0.0 and any(of.input[2:3])",
        "return False",
        "tests/test_gemm.py",
    ),
    Mutant(
        "the terms of a sum are told by their places",
        "_proof/crossings.py",
        "ways = [plain] if list(twin.input) == list(reads) else [swapped]",
        "ways = [plain]",
        "tests/carry/test_signs.py",
    ),
    Mutant(
        "the parts of a Concat swapped",
        "_core/joins.py",
        "for n, (s, t) in enumerate(parts)})]",
        "for n, (s, t) in enumerate([*parts][::-1])})]",
        "tests/carry/test_branches.py",
    ),
    Mutant(
        "a scale through a divisor",
        "_core/products.py",
        "for number in range(1 if self.quotient else 2):",
        "for number in range(2):",
        "tests/carry/test_branches.py tests/carry/test_laws.py",
    ),
    Mutant(
        "a Transpose taken the other way round",
        "_core/index_maps.py",
        "undone.append(Permuted(tuple(int(k) for k in np.argsort(step.order))))",
        "undone.append(Permuted(step.order))",
        "tests/plan/test_layout.py tests/carry/test_places.py",
    ),
    # --- planner ---------------------------------------------------------------------------------
    Mutant(
        "a tensor that others read too",
        "_core/absorbing.py",
        "return value.pinned\n    other =",
        "return value.pinned\n    return None\n    other =",
        "tests/test_sharing.py",
    ),
    Mutant(
        "a tensor that the graph puts out or a body reads",
        "_core/absorbing.py",
        "if value.pinned is not None:",
        "if False:",
        "tests/test_sharing.py tests/test_subgraphs.py",
    ),
    Mutant(
        "maps that do not commute change places",
        "_core/absorbing.py",
        "return outward and (second.keeps_origin or first.keeps_scale)",
        "return outward",
        "tests/plan/test_row.py",
    ),
    Mutant(
        "a move that costs operators",
        "_core/absorbing.py",
        "return fewer and added <= removed and added_operations <= removed_operations",
        "return True",
        "tests/plan/test_planner.py tests/plan/test_relocate.py tests/test_kept.py",
    ),
    Mutant(
        "another axis of the same size",
        "_core/absorbing.py",
        "size = absorber.channels.get(total.axis)",
        "size = next(iter(absorber.channels.values()), None)",
        "tests/test_constants.py",
    ),
    Mutant(
        "a shift inserted behind what was absorbed",
        "_plan/relocation.py",
        "moved = shift.then(absorbing.split(state.absorbed)[0])",
        "moved = shift",
        "tests/carry/test_ahead.py",
    ),
    Mutant(
        "a map along channels is put where the rank is not known",
        "_plan/relocation.py",
        "if map_.axis is not None and not any(map(self._lies_on_channels, maps)):",
        "if False:",
        "tests/test_shapes.py",
    ),
    Mutant(
        "a map that is left out is checked as a float32",
        "_proof/certificate.py",
        "if not made.steps and len(kinds) == 1:",
        "if False:",
        "tests/verify/test_right_folds.py",
    ),
    Mutant(
        "a product has the rank of its data",
        "_proof/checked_model.py",
        "multiplied = multiplied or product",
        "return None",
        "tests/verify/test_right_folds.py",
    ),
    Mutant(
        "the probe takes the axes of a product for those of its data",
        "_proof/local_probe.py",
        "if any((step.axis or 0) >= rank > 0 for",
        "if any(False for",
        "tests/verify/test_right_folds.py",
    ),
    Mutant(
        "what the numbers of one map have decided is taken to hold for others",
        "_plan/sweep.py",
        "known.note(self._place(value), map_, end, numbers or chance)",
        "known.note(self._place(value), map_, end, False)",
        "tests/plan/test_growth.py",
    ),
    Mutant(
        "a norm of a tensor of unknown rank is written as a Mul",
        "_plan/places.py",
        'if self.style.fixed and any(each.op != "BatchNormalization" for each in needed):',
        "if False:",
        "tests/plan/test_relocate.py",
    ),
    # --- readers ---------------------------------------------------------------------------------
    Mutant(
        "transposed factors of a Gemm read as they lie",
        "_core/operators/matrices.py",
        "stored = (1 - axis) if turned[axis] else axis",
        "stored = axis",
        "tests/test_gemm.py",
    ),
    Mutant(
        "weights that a caller may override",
        "_onnx/read/constants.py",
        "return self._from_tensor(name, tensor, name if name in scope.protected else None)",
        "return self._from_tensor(name, tensor, None)",
        "tests/test_sharing.py tests/test_kept.py tests/test_fidelity.py",
    ),
    Mutant(
        "zero padding goes unseen",
        "_core/windows.py",
        "return any(pad > 0 for pad in self.pads)",
        "return False",
        "tests/carry/test_ahead.py",
    ),
    Mutant(
        "padding that auto_pad asks for goes unseen",
        "_onnx/read/windows.py",
        "found.append(Window(-start, k, dilation if k > 1 else 1, stride, room))",
        "found.append(Window.of(k, dilation, stride, (0, 0)))",
        "tests/carry/test_ahead.py",
    ),
    Mutant(
        "counted padding goes unseen",
        "_core/operators/crossed.py",
        "uneven = self.counted and (self.padded or bool(self.ceils))",
        "uneven = False",
        "tests/carry/test_laws.py",
    ),
    Mutant(
        "counted padding goes unseen in PyTorch",
        "_torch/read/crossed.py",
        'counted=bool(args.get("count_include_pad", False)),',
        "counted=False,",
        "tests/torch/test_carry.py",
    ),
    Mutant(
        "the data of an operator pass for the shape that it asks",
        "_torch/read/nodes.py",
        '("other", _OF_OTHER)',
        '("self", _OF_OTHER)',
        "tests/torch/test_shape_readers.py",
    ),
    Mutant(
        "what a user wants kept may change",
        "_torch/read/graph.py",
        ", **(kept or {})}",
        "}",
        "tests/torch/test_other_ways.py",
    ),
    Mutant(
        "a method that collects what a part gives, on its way to the next, goes unseen",
        "_torch/module/other_ways.py",
        "if parts[0] in self._uses.given:",
        "if parts[0] is None:",
        "tests/torch/test_other_ways.py",
    ),
    Mutant(
        "a norm that takes in a map is rewritten without it",
        "_plan/depthwise.py",
        "total = before.then(taken.behind) if before is not None else None",
        "total = before",
        "tests/test_depthwise.py",
    ),
    Mutant(
        "a Mul alone stands for a norm with a shift",
        "_plan/depthwise.py",
        '*([] if rounded.keeps_origin else [Standing("Add", shift)])',
        '*([] if parts else [Standing("Add", shift)])',
        "tests/test_depthwise.py",
    ),
    Mutant(
        "the certificate takes any Conv for a depthwise one",
        "_proof/checked_model.py",
        'and set(given.get("strides", ())) <= {1}',
        "",
        "tests/test_depthwise.py",
    ),
    Mutant(
        "a module of a norm is rewritten for one of its calls",
        "_torch/module/surgery.py",
        "return len(ranks) == 1 and equal(first.role.map, second.role.map)",
        "return equal(first.role.map, second.role.map)",
        "tests/torch/test_depthwise.py",
    ),
    Mutant(
        "folding again forgets which modules hand on a new bias",
        "_torch/module/recipe.py",
        "again=None, takers=planned.surgery.takers",
        "again=None, takers=None",
        "tests/torch/test_refold.py",
    ),
    Mutant(
        "a module is kept in its first call alone",
        "_torch/module/keeping.py",
        "values.update(dict.fromkeys(found, reason))",
        "values.update(dict.fromkeys(found[:1], reason))",
        "tests/torch/test_other_ways.py",
    ),
    Mutant(
        "a method that only gives a changed tensor away goes unseen",
        "_torch/module/other_ways.py",
        "return len(groups) == 1 or",
        "return",
        "tests/torch/test_other_ways.py",
    ),
    Mutant(
        "a name alone says that an operator asks for a shape",
        "_torch/read/nodes.py",
        'getattr(node.target, "namespace", "") not in ("aten", "prim")',
        'not hasattr(node.target, "_schema")',
        "tests/torch/test_shape_readers.py",
    ),
    Mutant(
        "a norm goes whose parameters others ask for their shape",
        "_torch/module/ownership.py",
        "self._users = self._find_users(lambda node: node.all_input_nodes)",
        "self._users = self._find_users(values_read)",
        "tests/torch/test_shape_readers.py",
    ),
    Mutant(
        "padding by name goes unseen in PyTorch",
        "_torch/read/nodes.py",
        "total = dilation * (k - 1)",
        "total = 0",
        "tests/torch/test_ahead.py",
    ),
    Mutant(
        "a decomposed transposed convolution passes for a plain one",
        "_torch/read/linear.py",
        'args.get("transposed", kind_of(node).startswith("conv_transpose"))',
        'kind_of(node).startswith("conv_transpose")',
        "tests/torch/test_decomposed.py",
    ),
    Mutant(
        "statistics that a norm puts out go with it",
        "_torch/read/affine.py",
        "out is not node and len(parts_of(node)) > 1",
        "out is not node and len(parts_of(node)) > 9",
        "tests/torch/test_decomposed.py",
    ),
    Mutant(
        "a graph module folds for the sizes of an example alone",
        "_pipeline/lowered.py",
        "shapes = varying_sizes(model, (args, kwargs)) if shapes is None else shapes",
        "shapes = shapes",
        "tests/torch/test_graph_modules.py",
    ),
    Mutant(
        "integers of a program become floats",
        "_torch/read/quantized.py",
        "return found and not whole",
        "return False",
        "tests/torch/test_program_quantized.py",
    ),
    Mutant(
        "a mask of integers passes for a quantized weight",
        "_torch/read/quantized.py",
        "return found and not whole",
        "return found",
        "tests/torch/test_program_quantized.py",
    ),
    Mutant(
        "integers behind a permutation are scaled along their own axis",
        "_torch/read/quantized.py",
        "order = [turned[1].index(axis) for axis in order]",
        "order = list(order)",
        "tests/torch/test_program_quantized.py",
    ),
    # --- writers ---------------------------------------------------------------------------------
    Mutant(
        "dequantized integers that two operators read are scaled for both",
        "_torch/program/quantized.py",
        "if not all(_is_read_once(node) for node in chain):",
        "if not chain:",
        "tests/torch/test_program_quantized.py",
    ),
    Mutant(
        "the zero point goes where one scale becomes several",
        "_torch/program/quantized.py",
        "int(zero.load().reshape(-1)[0])",
        "0",
        "tests/torch/test_program_quantized.py",
    ),
    Mutant(
        "a quantizer rounds by its old scale",
        "_torch/program/quantized.py",
        "chain[: len(first) + 1]",
        "chain[len(first) : len(first) + 1]",
        "tests/torch/test_program_quantized.py",
    ),
    Mutant(
        "a weight of which a permutation is read is written unpermuted",
        "_torch/program/parameters.py",
        "(name,), values = old.sources, values.transpose(turned[1])",
        "(name,) = old.sources",
        "tests/torch/test_decomposed.py",
    ),
    Mutant(
        "a weight of which two permutations are read is written over",
        "_torch/program/parameters.py",
        "turned is not None and len(turned[0].users) == 1",
        "turned is not None",
        "tests/torch/test_decomposed.py",
    ),
    Mutant(
        "an mm that becomes an addmm keeps its old weight",
        "_torch/program/parameters.py",
        "(made, *reads_of(node))",
        "(made, *reads)",
        "tests/torch/test_decomposed.py",
    ),
    Mutant(
        "what multiplies the bias of an addmm counts twice",
        "_torch/program/parameters.py",
        'set_argument(node, "beta", 1)',
        'set_argument(node, "beta", site.bias_factor)',
        "tests/torch/test_decomposed.py",
    ),
    Mutant(
        "a shared weight is written over",
        "_onnx/write/edits.py",
        "and self._uses[owner.path][old.name] == 1",
        "and self._uses[owner.path][old.name] >= 1",
        "tests/test_sharing.py",
    ),
    Mutant(
        "the beta of a Gemm counts twice",
        "_onnx/write/parameters.py",
        "if site.bias_factor != 1.0:",
        "if False:",
        "tests/test_gemm.py",
    ),
    Mutant(
        "names that are taken are given out",
        "_onnx/read/scopes.py",
        "while name in self._taken:",
        "while False:",
        "tests/test_names.py",
    ),
    # --- merging ---------------------------------------------------------------------------------
    Mutant(
        "a kernel laid from the pads of its other end",
        "_core/windows.py",
        "return cls(-pads[0], taps",
        "return cls(-pads[1], taps",
        "tests/merge/test_parallel.py",
    ),
    Mutant(
        "the inner bias of a series lost",
        "_merge/kernels.py",
        "return np.asarray(second.bias() + image.reshape(-1))",
        "return np.asarray(second.bias() + 0 * image.reshape(-1))",
        "tests/merge/test_serial.py tests/merge/test_products.py",
    ),
    Mutant(
        "groups side by side in the wrong place",
        "_merge/kernels.py",
        "result[:, number, :, number] = parts[:, number]",
        "result[:, number, :, 0] = parts[:, number]",
        "tests/merge/test_parallel.py",
    ),
    Mutant(
        "a bias at a padded border",
        "_merge/kernels.py",
        "if padded and bool((first.bias() != 0).any()):",
        "if False:",
        "tests/merge/test_serial.py",
    ),
    # --- equal maps ------------------------------------------------------------------------------
    Mutant(
        "maps are equal whatever their constants hold",
        "_onnx/merge/equal.py",
        "content = hashlib.sha256(values.tobytes()).digest()",
        'content = b""',
        "tests/test_equal_maps.py",
    ),
    Mutant(
        "attributes do not tell maps apart",
        "_onnx/merge/equal.py",
        "return type_of(node), tuple(attributes), tuple(operands)",
        "return type_of(node), (), tuple(operands)",
        "tests/test_equal_maps.py",
    ),
    Mutant(
        "an output is dropped as equal to another tensor",
        "_onnx/merge/equal.py",
        "if known != position and value.pinned is None:",
        "if known != position:",
        "tests/test_equal_maps.py",
    ),
    Mutant(
        "who read a map that is dropped reads what it read",
        "_onnx/merge/equal.py",
        "reader.input[number] = kept.output[0]",
        "reader.input[number] = kept.input[0]",
        "tests/test_equal_maps.py",
    ),
    Mutant(
        "calls are inlined for maps that are equal only then",
        "_onnx/fold.py",
        "in (one for one in merges.patches if one.law != EQUAL):",
        "in merges.patches:",
        "tests/test_equal_maps.py",
    ),
    Mutant(
        "the check of equal maps compares types and shapes alone",
        "_proof/merges.py",
        "return one.tobytes() == other.tobytes()",
        "return True",
        "tests/test_equal_maps.py",
    ),
    Mutant(
        "the check of equal maps does not look at their readers",
        "_proof/merges.py",
        "if patch.nodes[position] != expected:",
        "if False:",
        "tests/test_equal_maps.py",
    ),
    # --- shared weights --------------------------------------------------------------------------
    Mutant(
        "the last reader of a shared weight has a copy of its own",
        "_onnx/write/edits.py",
        "if old is None or known else self._holder",
        "if old is None else self._holder",
        "tests/test_sharing.py",
    ),
    Mutant(
        "a weight is stored for each name that an Identity gives it",
        "_onnx/read/scopes.py",
        'if type_of(node) != "Identity":',
        "if True:",
        "tests/test_sharing.py",
    ),
    # --- quantizers ------------------------------------------------------------------------------
    Mutant(
        "a quantizer takes its new scale the wrong way round",
        "_core/pointwise.py",
        'Edit({"scale": self.scale / float(map_.scale[0])})',
        'Edit({"scale": self.scale * float(map_.scale[0])})',
        "tests/test_quantizer.py",
    ),
    Mutant(
        "a quantizer takes a shift in",
        "_core/pointwise.py",
        "map_.shift[0] == 0 < self.scale < math.inf",
        "0 < self.scale < math.inf",
        "tests/test_quantizer.py",
    ),
    Mutant(
        "a certificate of a quantizer sees no scale",
        "_proof/quantizers.py",
        "return max(worst, shifts)",
        "return shifts",
        "tests/test_quantizer.py",
    ),
    # --- dead channels ---------------------------------------------------------------------------
    Mutant(
        "a channel of normal numbers is dead",
        "_core/limits.py",
        "before = (peaks < limits.tiny) | (magnitude < limits.tiny)",
        "before = peaks >= 0",
        "tests/test_dtypes.py",
    ),
    Mutant(
        "a denormal number of float16 shows nothing",
        "_core/limits.py",
        " & (shown < limits.eps))",
        ")",
        "tests/test_dtypes.py",
    ),
    Mutant(
        "a certificate does not see that a channel is lost",
        "_proof/absorption.py",
        "    if channels is not None:\n        channels.check(peaks, dtype, case)",
        "    if False:\n        channels.check(peaks, dtype, case)",
        "tests/test_dtypes.py",
    ),
    # --- fused operators -------------------------------------------------------------------------
    Mutant(
        "a map behind a fused operator forgets the activation",
        "_plan/sweep.py",
        "if absorber.activation is None:",
        "if True:",
        "tests/test_fused_operators.py",
    ),
    Mutant(
        "a scale behind a fused operator forgets the sum",
        "_plan/backward.py",
        "if role.beside is not None and isinstance(inner, AffineMap) and not inner.keeps_scale:",
        "if False:",
        "tests/test_fused_operators.py",
    ),
    Mutant(
        "FusedMatMul leaves its batch axes where they are",
        "_core/operators/matrices.py",
        "if batch and rank > 2:",
        "if False:",
        "tests/test_fused_operators.py",
    ),
    Mutant(
        "a certificate lets every map past an activation",
        "_proof/activations.py",
        "    if not kind:\n        return case, 0.0",
        "    if True:\n        return case, 0.0",
        "tests/test_fused_operators.py",
    ),
    Mutant(
        "a certificate forgets what a fused operator adds",
        "_proof/activations.py",
        "    if not given[0]:\n        return case",
        "    if True:\n        return case",
        "tests/test_fused_operators.py",
    ),
    # --- sparse weights --------------------------------------------------------------------------
    Mutant(
        "a sparse tensor has its numbers in the order of their size",
        "_onnx/read/sparse.py",
        "whole[where] = numbers",
        "whole[np.sort(where)] = np.sort(numbers)",
        "tests/test_sparse.py",
    ),
    Mutant(
        "what a sparse tensor cannot hold is left out",
        "_onnx/read/sparse.py",
        "return numbers if np.count_nonzero(values) == np.count_nonzero(numbers) else None",
        "return numbers",
        "tests/test_sparse.py",
    ),
    Mutant(
        "a sparse tensor that others read is rewritten",
        "_onnx/write/edits.py",
        "if old is not None and held is not None and self._may_rewrite(scope, old, values):",
        "if old is not None and held is not None:",
        "tests/test_sparse.py",
    ),
    Mutant(
        "a sparse weight becomes part of a dense one",
        "_onnx/read/context.py",
        "unmerged=Reason(",
        "missing=None and Reason(",
        "tests/test_sparse.py",
    ),
    # --- frozen initializers ---------------------------------------------------------------------
    Mutant(
        "frozen initializers stay inputs",
        "_onnx/read/frozen.py",
        "    if names:\n        kept",
        "    if False:\n        kept",
        "tests/test_frozen.py",
    ),
    Mutant(
        "initializers before IR version 4 are dropped from the inputs",
        "_onnx/read/frozen.py",
        "if model.ir_version < _OVERRIDABLE:",
        "if False:",
        "tests/test_frozen.py",
    ),
    # --- certificates ----------------------------------------------------------------------------
    Mutant(
        "a certificate holds whatever the weights are",
        "_proof/evidence.py",
        "right = not self.problem and self.ulps <= 1.0",
        "right = not self.problem",
        "tests/verify/test_certificate.py::test_one_channel_off_by_a_percent_is_seen",
    ),
    Mutant(
        "a certificate looks at no attribute",
        "_proof/absorption.py",
        "if attributes(node) != attributes(twin):",
        "if False:",
        "tests/verify/test_certificate.py::test_changed_attribute_is_seen",
    ),
    Mutant(
        "a certificate forgets the scale of the bias",
        "_proof/absorption.py",
        "wanted = target.scale * (old + image.value) + target.shift",
        "wanted = old + target.scale * image.value + target.shift",
        "tests/verify/test_certificate.py::test_right_fold_holds",
    ),
    Mutant(
        "a certificate of a shift across zero padding",
        "_proof/formulas.py",
        '    if padded:\n        raise Mismatch(f"a shift went ahead',
        '    if False:\n        raise Mismatch(f"a shift went ahead',
        "tests/verify/test_carried.py",
    ),
    Mutant(
        "a certificate looks at no input besides data and parameters",
        "_proof/absorption.py",
        "if given[0] != given[1] or was != now or related:",
        "if False:",
        "tests/verify/test_recurrent.py",
    ),
    Mutant(
        "a parameter that one operator reads twice",
        "_torch/module/ownership.py",
        "if self._reads(node, name) > 1:",
        "if False:",
        "tests/torch/test_aliases.py tests/torch/test_recurrent.py",
    ),
    Mutant(
        "what lies between quantizers agrees",
        "_judge/between_quantizers.py",
        'status: Status = "fail" if parts is None else overall(parts[1])',
        'status: Status = "fail" if parts is None else "pass"',
        "tests/test_quantize_paths.py",
    ),
    Mutant(
        "steps of quantizers explain any difference",
        "_judge/between_quantizers.py",
        "check.difference > STEPS * most",
        "check.difference > 1e9 * most",
        "tests/verify/test_steps.py",
    ),
    Mutant(
        "quantizers of other numbers round alike",
        "_run/quantizers.py",
        "return same and alike and not blocks",
        "return alike and not blocks",
        "tests/verify/test_steps.py",
    ),
    Mutant(
        "integers saturate by the fold's doing",
        "_judge/deployment.py",
        "check = replace(deployment, precise=True).check(provider, expected)",
        "check = deployment.check(provider, expected)",
        "tests/verify/test_steps.py",
    ),
    # --- probes ----------------------------------------------------------------------------------
    Mutant(
        "the probe of a crossing sees nothing",
        "_proof/crossings.py",
        "worst = max(worst, float(off.max()) / (_FACTOR * max(largest, _TINY)))",
        "worst = max(worst, 0.0)",
        "tests/verify/test_carried.py",
    ),
    Mutant(
        "the local probe sees nothing",
        "_proof/local_probe.py",
        "worst = max(worst or 0.0, float(np.max(np.where(np.isnan(told), np.inf, told))))",
        "worst = max(worst or 0.0, 0.0)",
        "tests/verify/test_local.py",
    ),
    Mutant(
        "a call of a function is an operator of its name",
        "_onnx/read/graph.py",
        "called = kind in context.scope.functions",
        "called = False",
        "tests/test_last_axis_norms.py",
    ),
    Mutant(
        "what a norm normalizes may change",
        "_proof/formulas.py",
        "if place not in parameters:",
        "if False:",
        "tests/test_last_axis_norms.py",
    ),
    Mutant(
        "a certificate draws nothing about a threshold",
        "_proof/torch_certificate.py",
        "        if not numbers:\n",
        "        if True:\n",
        "tests/torch/test_certificate.py",
    ),
    Mutant(
        "a crossing that cannot be run is no difference",
        "_proof/crossings.py",
        "            return drawn\n        left",
        "            return 0.0\n        left",
        "tests/verify/test_unchecked.py",
    ),
    Mutant(
        "a certificate of a program sees nothing",
        "_proof/torch_certificate.py",
        "worst = max(worst, float(np.max(np.where(np.isnan(told), np.inf, told))))",
        "worst = max(worst, 0.0)",
        "tests/torch/test_certificate.py",
    ),
    # --- judge -----------------------------------------------------------------------------------
    Mutant(
        "a thousand times the tolerance",
        "_judge/tolerance.py",
        "FACTOR = 3.0",
        "FACTOR = 3000.0",
        "tests/verify/test_end_to_end.py::test_a_wrong_fold_fails "
        "tests/verify/test_end_to_end.py::test_a_right_fold_passes_on_all_input_sets",
    ),
    Mutant(
        "one output of two is enough",
        "_judge/verdict.py",
        'return "pass" if outputs and seen == outputs else "inconclusive"',
        'return "pass" if outputs and seen else "inconclusive"',
        "tests/verify/test_verdict.py",
    ),
    Mutant(
        "an inaccurate original excuses anything",
        "_judge/second_look.py",
        "if (off := ratio(sides[1])) > 1.0:",
        "if (off := ratio(sides[1])) > 1e30:",
        "tests/verify/test_doubt.py",
    ),
    Mutant(
        "errors that do not show count as seen",
        "_judge/power.py",
        "return self._in_tolerances(at, step) > MARGIN",
        "return True",
        "tests/verify/test_power.py",
    ),
    Mutant(
        "a fold that rests on the comparison need not show",
        "_judge/end_to_end.py",
        "unnoticed=[resting[number].into for number in sorted(unnoticed)],",
        "unnoticed=[],",
        "tests/verify/test_unchecked.py",
    ),
    Mutant(
        "PyTorch's outputs depend on no weight",
        "_run/torch_model.py",
        "return {number for number, names in enumerate(outputs) if not wanted.isdisjoint(names)}",
        "return set()",
        "tests/torch/test_judge.py",
    ),
    Mutant(
        "operators of opset 6 line up from the last axis",
        "_run/reference.py",
        "start = axis + first.ndim if axis < 0 else axis",
        "start = first.ndim - second.ndim",
        "tests/verify/test_legacy.py",
    ),
    Mutant(
        "what an unknown operator reads is not compared",
        "_run/cut.py",
        'read = [(f"input {n} of {name}", t) for n, t in enumerate(node.input) if t]',
        "read = list[tuple[str, str]]()",
        "tests/verify/test_custom_operators.py",
    ),
    Mutant(
        "unknown operators with other attributes are the same",
        "_run/endings.py",
        "return key, functions if inner else None, attributes, [bool(name) for name in node.input]",
        "return key, functions if inner else None, [bool(name) for name in node.input]",
        "tests/verify/test_custom_operators.py",
    ),
    Mutant(
        "other constants behind the tensors ahead of an output",
        "_run/endings.py",
        "if not self.same_constants(one, other) or not all(map(self._same_origin, stored)):",
        "if False:",
        "tests/verify/test_ahead.py",
    ),
    Mutant(
        "functions inside functions are not looked at",
        "_run/endings.py",
        "functions if inner else None",
        "functions.get(key)",
        "tests/verify/test_ahead.py",
    ),
    Mutant(
        "all random numbers of a model are the same",
        "_run/draws.py",
        "[self.seed, number])",
        "[self.seed])",
        "tests/verify/test_ahead.py",
    ),
    Mutant(
        "an output passes where something ahead of it does",
        "_judge/ahead.py",
        'if statuses <= {"pass"} and',
        'if "fail" not in statuses and',
        "tests/verify/test_ahead.py",
    ),
    Mutant(
        "rounding of inputs explains any difference",
        "_judge/tolerance.py",
        "return moved > self.allowed(at, expected) and difference <= WIDEST * moved",
        "return True",
        "tests/verify/test_moved_inputs.py",
    ),
    Mutant(
        "a layer is dead where one factor in a node is zero, whichever it is",
        "_run/nodes.py",
        "if place < len(node.input) and node.input[place] in zeros",
        "if place < len(node.input)",
        "tests/verify/test_dead.py",
    ),
    # --- inputs ----------------------------------------------------------------------------------
    Mutant(
        "stored values are drawn as inputs",
        "_run/drawing.py",
        "            for value in own_inputs(graph)\n        ]",
        "            for value in graph.input\n        ]",
        "tests/verify/test_drawing.py::test_initializers_listed_as_inputs_are_not_fed",
    ),
    Mutant(
        "free sizes never vary",
        "_run/drawing.py",
        "changes = [batch | length | side, length | side, batch | length, batch | side]",
        "changes = [{}]",
        "tests/verify/test_drawing.py",
    ),
    # --- surgery on modules ----------------------------------------------------------------------
    Mutant(
        "branches that a hook sees",
        "_torch/module/branches.py",
        "if not all(isinstance(hook, weights) for each in hooks for hook in each.values()):",
        "if False:",
        "tests/torch/test_merge_modules.py",
    ),
    Mutant(
        "branches whose weights others read",
        "_torch/module/branches.py",
        "if self._owned.is_read_elsewhere(path):",
        "if False:",
        "tests/torch/test_merge_modules.py",
    ),
    Mutant(
        "branches with an output that is kept",
        "_torch/module/branches.py",
        "if pinned is not None:",
        "if False:",
        "tests/torch/test_merge_modules.py",
    ),
    Mutant(
        "merged weights rounded before the fold",
        "_torch/module/fold.py",
        "partial(to_numpy, values)",
        "partial(to_numpy, values.float())",
        "tests/torch/test_merge_modules.py",
    ),
    Mutant(
        "calls of one operator that take in different maps",
        "_torch/module/surgery.py",
        "if not all(equal(first.behind, other.behind) for other in others):",
        "if False:",
        "tests/torch/test_several_calls.py",
    ),
    Mutant(
        "weights written once for each call",
        "_torch/module/surgery.py",
        "if node not in written:",
        "if True:",
        "tests/torch/test_several_calls.py",
    ),
    Mutant(
        "a tensor from the inside of a module that goes, read by others",
        "_torch/module/remainders.py",
        "source is not before or not set(source.users) <= set(part)",
        "source is not before",
        "tests/torch/test_norm_with_activation.py",
    ),
    Mutant(
        "a submodule that never ran runs",
        "_torch/module/remainders.py",
        " or set(order) != set(names.values())",
        "",
        "tests/torch/test_norm_with_activation.py",
    ),
    Mutant(
        "the activation of a norm without its number",
        "_torch/module/formulas.py",
        'nn.LeakyReLU(bound["negative_slope"], inplace)',
        "nn.LeakyReLU(inplace=inplace)",
        "tests/torch/test_norm_with_activation.py",
    ),
    Mutant(
        "code that goes another way for another size",
        "_torch/module/unseen.py",
        "_Tracer(rank, sizes).trace(module)",
        "_Tracer(rank, sizes)",
        "tests/torch/test_norm_with_activation.py",
    ),
    Mutant(
        "a norm that keeps something when it runs",
        "_torch/module/unseen.py",
        "if key_of(module) in calls.writing:",
        "if False:",
        "tests/torch/test_norm_with_activation.py",
    ),
    Mutant(
        "parameters that two modules share",
        "_torch/module/ownership.py",
        "if where and (others or several):",
        "if False:",
        "tests/torch/test_aliases.py tests/torch/test_traps.py",
    ),
    Mutant(
        "modules whose hooks compute",
        "_torch/module/surgery.py",
        "if isinstance(module, nn.Identity) or (hooked and not own):",
        "if False:",
        "tests/torch/test_hooks.py tests/torch/test_traps.py tests/torch/test_carry.py",
    ),
    Mutant(
        "what differs is tied again",
        "_torch/module/ties.py",
        "and torch.equal(one.detach(), other.detach())",
        "",
        "tests/torch/test_clone.py",
    ),
    # --- files -----------------------------------------------------------------------------------
    Mutant(
        "data files are left where a rename failed",
        "_onnx/files/save.py",
        "for target in placed:",
        "for target in ():",
        "tests/cli/test_writing.py::test_an_existing_output_survives_a_rename_that_fails",
    ),
    Mutant(
        "external weights written at the start of their file",
        "_onnx/files/external.py",
        "file.seek(offset)\n            file.write(data)\n            _externalize(tensor, t",
        "file.seek(0)\n            file.write(data)\n            _externalize(tensor, t",
        "tests/test_external_data.py",
    ),
    Mutant(
        "parts between quantizers that settle nothing excuse any difference",
        "_judge/between_quantizers.py",
        "check.difference > STEPS * by",
        "False",
        "tests/verify/test_steps.py",
    ),
    Mutant(
        "a tensor ahead that was not compared counts as equal",
        "_judge/ahead.py",
        "for name in names}\n    ahead",
        "for name in {each.output for each in found}}\n    ahead",
        "tests/verify/test_ahead.py",
    ),
    Mutant(
        "renamed ports of one type differ where they lie in another order",
        "_judge/end_to_end.py",
        "        if allowed is None:",
        "        if True:",
        "tests/verify/test_ports.py",
    ),
    Mutant(
        "any order in which renamed inputs run is one that agrees",
        "_run/ports.py",
        "        else [value.name]\n        for value in folded.graph.output",
        "        else [value.name]\n        for value in folded.graph.output[:0]",
        "tests/verify/test_ports.py",
    ),
    Mutant(
        "an output of a way to pair may be any one",
        "_run/ports.py",
        "                if new not in owners or place(owners[new], tried):",
        "                if True:",
        "tests/verify/test_ports.py",
    ),
    Mutant(
        "notes on an inner tensor come to stand at a port",
        "_run/ports.py",
        "for named in (*stored, *graph.value_info):",
        "for named in stored:",
        "tests/verify/test_ports.py",
    ),
    Mutant(
        "random numbers belong together by their order in the file alone",
        "_run/draws.py",
        "    if ours != theirs:  #",
        "    if False:  #",
        "tests/verify/test_ahead.py",
    ),
    Mutant(
        "every operator that does not load alone is unknown",
        "_run/libraries.py",
        'return said.replace(name, "") == of_none.replace(_NOBODYS, "").replace(name, "")',
        "return True",
        "tests/verify/test_custom_operators.py",
    ),
    Mutant(
        "an operator without a kernel is known by its type alone",
        "_judge/unknown_operators.py",
        "    if len({kind_of(node) for node in told}) > 1:",
        "    if False:",
        "tests/verify/test_custom_operators.py",
    ),
    Mutant(
        "a Pad of some axes pads the first ones",
        "_onnx/read/growth.py",
        "range(len(more) // 2) if axes is None else [int(n) for n in axes.reshape(-1)]",
        "range(len(more) // 2)",
        "tests/test_constants.py",
    ),
    Mutant(
        "an Einsum without an arrow makes one number",
        "_onnx/read/growth.py",
        "    if not arrow:\n",
        "    if False:\n",
        "tests/test_constants.py",
    ),
    Mutant(
        "what a body reads, too, goes to the quantizer alone",
        "_onnx/read/rounded.py",
        "    while name not in scope.outputs and name not in scope.captures:",
        "    while name not in scope.outputs:",
        "tests/test_rounded_data.py",
    ),
    Mutant(
        "other data may be added ahead of a quantizer",
        "_onnx/read/rounded.py",
        "if kind not in _AHEAD_OF_QUANTIZER or len(data) != 1:",
        "if kind not in _AHEAD_OF_QUANTIZER:",
        "tests/test_rounded_data.py",
    ),
    Mutant(
        "inlining imports all that a function does",
        "_onnx/read/inlining.py",
        "            if _own(entry.domain) in used - imported:",
        "            if _own(entry.domain) not in imported:",
        "tests/test_functions.py",
    ),
    Mutant(
        "an element type that is not told counts as known",
        "_onnx/read/shapes.py",
        "    if tensor.elem_type:  #",
        "    if True:  #",
        "tests/test_shapes.py",
    ),
    Mutant(
        "weights of half precision may be as far apart as they like",
        "_judge/half_weights.py",
        "    if found.units <= UNITS:",
        "    if True:",
        "tests/verify/test_power.py",
    ),
    Mutant(
        "weights of half precision have to be the same",
        "_judge/half_weights.py",
        "    if found.units <= UNITS:",
        "    if not found.units:",
        "tests/verify/test_power.py",
    ),
    Mutant(
        "errors planted in float16 are told as small as those in float32",
        "_judge/power.py",
        "max(mistake_in(weights[layer.weight]) for layer in found.layers)",
        "0.01",
        "tests/verify/test_power.py",
    ),
    Mutant(
        "the certificate lets anything be rounded to half",
        "_proof/conversions.py",
        "    if types[0] == narrow and read.new:",
        "    if False:",
        "tests/carry/test_conversions.py",
    ),
    Mutant(
        "the certificate lets maps go forward to half",
        "_proof/conversions.py",
        "    if types[1] == narrow and written.old and not written.new:",
        "    if False:",
        "tests/carry/test_conversions.py",
    ),
    Mutant(
        "the certificate does not see what one batch of weights loses",
        "_proof/product_formulas.py",
        "made, made.dtype, held)",
        "made, made.dtype)",
        "tests/test_dtypes.py",
    ),
    Mutant(
        "the certificate does not see what one number of a gamma loses",
        "_proof/formulas.py",
        "    held.check(np.where(np.isnan(wanted), 0.0, np.abs(wanted)), made.dtype, case)\n",
        "",
        "tests/test_dtypes.py",
    ),
    Mutant(
        "one batch of weights hides what another loses",
        "_core/operators/linear.py",
        "            parts=channels.off_axis(shape, self.summed),\n",
        "",
        "tests/test_dtypes.py",
    ),
    Mutant(
        "the largest bias of a channel drowns what is lost beside the others",
        "_core/parameters.py",
        "laid.min(axis=others, initial=np.inf)",
        "laid.max(axis=others, initial=0.0)",
        "tests/test_dtypes.py",
    ),
    Mutant(
        "the certificate lets a quantizer read something else",
        "_proof/quantizers.py",
        "    steps.require_same_data(old, new, node, twin)\n",
        "",
        "tests/test_quantizer.py",
    ),
    Mutant(
        "the certificate lets a linear operator read something else",
        "_proof/certificate.py",
        "    steps.require_same_data(old, new, node, twin)\n",
        "",
        "tests/verify/test_certificate.py",
    ),
    Mutant(
        "the certificate lets others read the scales of a dynamic product",
        "_proof/quantized.py",
        "    if not case.new_scope.is_read_once(product):",
        "    if False:",
        "tests/test_rounded_data.py",
    ),
    Mutant(
        "inlining may change constants",
        "_proof/inlined_calls.py",
        "    if _stored(original.graph) != _stored(started.graph):",
        "    if False:",
        "tests/test_functions.py",
    ),
    Mutant(
        "an inlined call leaves attributes to the defaults of its function",
        "_onnx/read/inlining.py",
        "for a in (*function.attribute_proto, *call.attribute)}",
        "for a in (*call.attribute, *function.attribute_proto)}",
        "tests/test_functions.py::test_attributes_of_each_call_and_defaults",
    ),
    Mutant(
        "a function of any opset is inlined",
        "_onnx/read/inlining.py",
        "return int(one) if one == other else None",
        "return int(one)",
        "tests/test_functions.py::test_a_function_of_another_opset",
    ),
    Mutant(
        "weights of inlined calls stay with the copy in which they were folded",
        "_onnx/fold.py",
        "[(copies.get(id(t), t), at) for t, at in rewritten.relocated]",
        "list(rewritten.relocated)",
        "tests/test_external_data.py",
    ),
    Mutant(
        "functions that nobody ever called go",
        "_onnx/read/inlining.py",
        "for key in places if key in called and not callers[key]",
        "for key in places if not callers[key]",
        "tests/test_functions.py::test_functions_that_nobody_called_stay",
    ),
    # --- files -----------------------------------------------------------------------------------
    Mutant(
        "any suffix will do for a model",
        "_onnx/files/text_forms.py",
        "if _OTHERS.fullmatch(suffix):",
        "if False:",
        "tests/cli/test_kinds.py",
    ),
    # --- the command -----------------------------------------------------------------------------
    Mutant(
        "undecided is done",
        "_command/terminal.py",
        '"inconclusive": UNDECIDED,',
        '"inconclusive": PASSED,',
        "tests/cli/test_exit_codes.py",
    ),
    Mutant(
        "a failed verification writes its file",
        "_pipeline/models.py",
        'written = output if verdict.status != "fail" else None',
        "written = output",
        "tests/cli/test_exit_codes.py",
    ),
    Mutant(
        "something left to fold is nothing",
        "_command/checking.py",
        "return FAILED if left else PASSED",
        "return PASSED",
        "tests/cli/test_formats.py",
    ),
    # --- planning time and memory -----------------------------------------------------------------
    Mutant(
        "what a failed trip has found is never forgotten",
        "_plan/dead_ends.py",
        "return near and not self.changes.since(end.time, end.span)",
        "return near",
        "tests/plan/test_growth.py",
    ),
    Mutant(
        "a place is never looked at again",
        "_plan/relocation.py",
        "if last is not None and not self._changes.since(last.time, last.seen):",
        "if last is not None:",
        "tests/plan/test_growth.py",
    ),
    Mutant(
        "no trip is remembered",
        "_plan/sweep.py",
        "        self.necks[value] = map_, self.steps\n",
        "",
        "tests/plan/test_growth.py",
    ),
    Mutant(
        "a shift is taken for the same kind of map as a scale",
        "_plan/dead_ends.py",
        "return axis, told if len(told) <= _WRITTEN_OUT else hashlib.sha256(told).digest()",
        "return (axis,)",
        "tests/plan/test_relocate.py",
    ),
    Mutant(
        "no move is far",
        "_plan/relocation.py",
        "if cut := [number for number, last in failed.items() if last.cut]:",
        "if cut := [number for number, last in failed.items() if not last]:",
        "tests/plan/test_growth.py",
    ),
    Mutant(
        "a product may leave its type",
        "_plan/gathering.py",
        "                raise Refusal(lost)\n",
        "                pass\n",
        "tests/plan/test_growth.py",
    ),
    Mutant(
        "an operator that has its fill refuses the last map instead of the one too many",
        "_plan/fit.py",
        "            return maps[count]\n",
        "            return maps[-1]\n",
        "tests/plan/test_growth.py",
    ),
    Mutant(
        "a size is divided by one that it does not have",
        "_onnx/read/sizes.py",
        "            return None\n        words.remove(word)",
        "            continue\n        words.remove(word)",
        "tests/test_shapes.py",
    ),
    Mutant(
        "rows that do not come out even",
        "_onnx/read/sizes.py",
        "if number is None or not divisor or number % divisor:",
        "if number is None or not divisor:",
        "tests/test_shapes.py",
    ),
    Mutant(
        "a Slice with computed bounds takes every element",
        "_onnx/read/hints.py",
        "[start:end:step]",
        "[start:end]",
        "tests/test_shapes.py",
    ),
    Mutant(
        "a tree ensemble is copied to learn its shapes",
        "_onnx/read/shapes.py",
        'trees = source.domain == _CLASSICAL and source.op_type.startswith("TreeEnsemble")',
        "trees = False",
        "tests/test_shapes.py",
    ),
    # --- integers --------------------------------------------------------------------------------
    Mutant(
        "a negative map keeps the sign of integers",
        "_core/quantized.py",
        "turns = bool((inside <= 0).any()) and not self.multiplies",
        "turns = False",
        "tests/test_rounded_weights.py",
    ),
    Mutant(
        "the smallest integer is turned into itself",
        "_core/quantized.py",
        "lost = turned.astype(np.float64) != exact",
        "lost = np.zeros(exact.shape, bool)",
        "tests/test_rounded_weights.py tests/test_quantized.py",
    ),
    Mutant(
        "a float at a border may be rounded to the other side",
        "_core/quantized.py",
        "off = rounding.integers(new, steps, zero) != wanted",
        "wanted = rounding.integers(new, steps, zero)\n            off = new != new",
        "tests/test_rounded_weights.py",
    ),
    Mutant(
        "what varies inside of a block goes into its scale",
        "_core/quantized.py",
        "if not np.array_equal(again, factor):",
        "if again.shape != factor.shape:",
        "tests/test_quantized.py",
    ),
    Mutant(
        "a dequantizer of data takes a negative scale",
        "_core/absorbing.py",
        "if absorber.signed_blocked is not None and not bool((total.scale > 0).all()):",
        "if absorber.signed_blocked is not None and not bool((total.scale != 0).all()):",
        "tests/test_rounded_data.py",
    ),
    Mutant(
        "a product of integers loses what parts it from an Add",
        "_onnx/read/rounded.py",
        'if not _reads_integers(context, node, weight) or "QuantizeLinear" in behind:',
        "if True:",
        "tests/test_rounded_data.py",
    ),
    Mutant(
        "a Gemm of integers gets a bias of floats",
        "_onnx/read/rounded.py",
        'if not runs or "QuantizeLinear" in _behind(context, node):',
        "if True:",
        "tests/test_rounded_data.py",
    ),
    Mutant(
        "scales of a dynamic convolution lie along the last axis",
        "_onnx/read/rounded.py",
        "return scale.reshape(-1, *(1,) * (len(self.weight.shape) - 2))",
        "return scale",
        "tests/test_rounded_data.py",
    ),
    Mutant(
        "scales of a dynamic product may have more axes than its sums",
        "_onnx/read/rounded.py",
        "scales is not None and len(scales) <= len(sums)",
        "scales is not None",
        "tests/test_rounded_data.py",
    ),
    # --- files of exporters ----------------------------------------------------------------------
    Mutant(
        "a file's inputs take the tensors of the example in another order",
        "_judge/file_bench.py",
        "for port, name in zip(ports, names, strict=True)}",
        "for port, name in zip(ports, names[::-1], strict=True)}",
        "tests/torch/test_exported_files.py",
    ),
    Mutant(
        "a file of few digits passes on its outputs",
        "_pipeline/exported_files.py",
        'if plain.status == "pass" and narrow is None:',
        'if plain.status == "pass":',
        "tests/torch/test_exported_files.py",
    ),
    Mutant(
        "weights of a file refute nothing that outputs do not",
        "_judge/file_weights.py",
        "if number in free:",
        "if number not in range(len(held)):",
        "tests/torch/test_exported_files.py",
    ),
    Mutant(
        "any weight of a shape is one of a file's but for roundings",
        "_judge/file_weights.py",
        "if not unexplained_tensor(wanted, each, dtype)",
        "if each.shape == wanted.shape",
        "tests/torch/test_exported_files.py",
    ),
    Mutant(
        "the numbers in a float64 module stay where ONNX rounds them",
        "_judge/file_bench.py",
        "numbers_move=True",
        "numbers_move=False",
        "tests/torch/test_exported_files.py",
    ),
    Mutant(
        "runtimes compute every function alike",
        "_judge/second_look.py",
        "not (bench.apart and about[1] <= _function_noise(left))",
        "True",
        "tests/torch/test_exported_files.py",
    ),
    Mutant(
        "weights of few digits that cannot be compared prove nothing, and it passes",
        "_pipeline/modules.py",
        'status=combined(seen.status, ["inconclusive"])',
        "status=seen.status",
        "tests/torch/test_bfloat16.py",
    ),
    Mutant(
        "code that asks for float32 gets it in float64",
        "_run/torch_modes.py",
        "return torch.float64 if value in _NARROW else value",
        "return value",
        "tests/torch/test_judge.py",
    ),
    Mutant(
        "a program of few digits is folded in its own types",
        "_judge/widening.py",
        "return torch.float64 if value in _NARROW else value",
        "return value",
        "tests/torch/test_judge.py",
    ),
    Mutant(
        "an output that is always empty passes whatever is ahead of it",
        "_judge/torch_bench.py",
        " if self.original.weights_of([n]) <= seen]",
        "]",
        "tests/torch/test_judge.py",
    ),
    Mutant(
        "outputs of a dictionary are paired by position",
        "_judge/torch_bench.py",
        "return [places[name] for name in wanted]",
        "return list(range(len(wanted)))",
        "tests/torch/test_exported_files.py",
    ),
    # --- .pt2 files that nobody trusts ------------------------------------------------------------
    Mutant(
        "a .pt2 file is read by PyTorch's reader alone",
        "_torch/program/untrusted.py",
        "for records in (_records_of_torch, _records_of_zip):",
        "for records in (_records_of_torch,):",
        "tests/torch/test_untrusted.py",
    ),
    Mutant(
        "a .pt2 file is read by zipfile alone",
        "_torch/program/untrusted.py",
        "for records in (_records_of_torch, _records_of_zip):",
        "for records in (_records_of_zip,):",
        "tests/torch/test_untrusted.py",
    ),
    Mutant(
        "a container of a .pt2 file imports the function that fills it",
        "_torch/program/untrusted.py",
        'if module != "builtins" or name not in _PLAIN_FACTORIES:',
        "if False:",
        "tests/torch/test_untrusted.py",
    ),
    Mutant(
        "a container of a .pt2 file imports an enumeration",
        "_torch/program/untrusted.py",
        'if "__enum__" in one:',
        "if False:",
        "tests/torch/test_untrusted.py",
    ),
    Mutant(
        "metadata of a .pt2 file end a text in quotes",
        "_torch/program/untrusted.py",
        "        if _STRANGE.search(word):",
        "        if False:",
        "tests/torch/test_untrusted.py",
    ),
    Mutant(
        "a tensor of a .pt2 file is a pickled object",
        "_torch/program/untrusted.py",
        'if str(payload.get("path_name", "")).startswith(_OBJECTS):',
        "if False:",
        "tests/torch/test_untrusted.py",
    ),
    Mutant(
        "a guard of a .pt2 file computes a number without end",
        "_torch/program/untrusted.py",
        "_LARGEST_POWER = 64",
        "_LARGEST_POWER = 10**12",
        "tests/torch/test_untrusted.py",
    ),
    Mutant(
        "a small file asks for a constant of gigabytes",
        "_onnx/read/constants.py",
        "                refuse_huge(node, inputs)\n",
        "",
        "tests/cli/test_damaged.py",
    ),
    Mutant(
        "inference computes with rows of any length",
        "_onnx/read/inference.py",
        "    _hide_long(hidden.graph, plain.graph)\n    found",
        "    found",
        "tests/cli/test_damaged.py",
    ),
    Mutant(
        "a float may be moved to the border of two integers",
        "_torch/read/quantized.py",
        "near = border <= _NEAR * np.maximum(1.0, np.abs(exact))",
        "near = border < 0",
        "tests/torch/test_program_quantized.py",
    ),
)


def main(names: Iterable[str] = ()) -> None:
    """Plant, run, tell; exit with 1 if a bug goes unnoticed."""
    wanted = set(names)
    unknown = wanted - {mutant.name for mutant in MUTANTS}
    if unknown:
        sys.exit(f"there is no mutant {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.name in wanted]
    sources = {mutant.path: (ROOT / mutant.path).read_text(encoding="utf-8") for mutant in chosen}
    changed = [(mutant, mutant.planted(sources[mutant.path])) for mutant in chosen]
    with tempfile.TemporaryDirectory(prefix="bnfold-mutants-") as scratch:
        checkout = Path(scratch, "checkout")
        shutil.copytree(ROOT, checkout, ignore=LEFT_OUT)
        tests = dict.fromkeys(test for mutant in chosen for test in mutant.tests.split())
        if _run(checkout, tests, "-n", "2") != 0:
            sys.exit("the tests fail without any bug")
        unnoticed = [m.name for m, text in changed if not _is_noticed(checkout, m, text)]
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} bugs are noticed")
    if unnoticed:
        sys.exit("\n".join(["unnoticed:", *unnoticed]))


def _is_noticed(checkout: Path, mutant: Mutant, text: str) -> bool:
    """Whether the tests go red with a bug, which is gone afterwards."""
    path, begun = checkout / mutant.path, time.monotonic()
    status, right = path.stat(), path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    # Another time than any that compiled code was made for.
    os.utime(path, (status.st_atime, status.st_mtime + 1 + MUTANTS.index(mutant)))
    code = _run(checkout, mutant.tests.split(), "-x")
    path.write_text(right, encoding="utf-8")
    os.utime(path, (status.st_atime, status.st_mtime))
    told = "red" if code == RED else f"NOT RED (pytest ends with {code})"
    print(f"{told}: {mutant.name} ({time.monotonic() - begun:.0f} s)", flush=True)
    return code == RED


def _run(checkout: Path, tests: Iterable[str], *options: str) -> int:
    """Pytest's exit code in a copy of the checkout, whose package goes before an installed one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests]
    done = subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode not in (0, RED):
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    main(sys.argv[1:])
