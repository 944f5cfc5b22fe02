"""Bugs in what the proof makes of programs of PyTorch: `_aten`. Another function is proved."""

from __future__ import annotations

from .planting import Mutant

_OPERATORS = "tests/torch/test_proof_operators.py"
_PROOF = "tests/torch/test_proof.py"
_FUNCTIONS = "tests/torch/test_proof_functions.py"
MUTANTS = (
    Mutant(
        "an empty range from the beginning goes to the end",
        "_aten/rearranged.py",
        "if start < 0 and not end:",
        "if not end:",
        _OPERATORS,
    ),
    Mutant(
        "a Softmax is the same in every version of ONNX",
        "_aten/writer.py",
        "_BY_AXIS = 13",
        "_BY_AXIS = 0",
        _PROOF,
    ),
    Mutant(
        "α of a sum is forgotten",
        "_aten/pointwise.py",
        'scaled = times(call, other, call.given.get("alpha", 1))',
        "scaled = other",
        _OPERATORS,
    ),
    Mutant(
        "an odd row of zeros goes to the beginning",
        "_aten/linear.py",
        "pads = [total // 2 for total in totals] + [total - total // 2 for total in totals]",
        "pads = [total - total // 2 for total in totals] + [total // 2 for total in totals]",
        _OPERATORS,
    ),
    Mutant(
        "a norm's ε is left out",
        "_aten/norms.py",
        "values.astype(np.float64) + number)",
        "values.astype(np.float64))",
        _OPERATORS,
    ),
    Mutant(
        "a norm in training counts as one of stored statistics",
        "_aten/norms.py",
        "    if training is not False:\n",
        "    if False:\n",
        _FUNCTIONS,
    ),
    Mutant(
        "a pool counts its padding, whatever it says",
        "_aten/windows.py",
        "count_include_pad=int(counted)",
        "count_include_pad=1",
        _OPERATORS,
    ),
    Mutant(
        "a rearrangement is told without its sizes",
        "_aten/call.py",
        "like, sizes=repr(like.sizes))",
        "like, sizes='')",
        f"{_OPERATORS} {_FUNCTIONS}",
    ),
    Mutant(
        "an operator without translation is told without its numbers",
        "_aten/opaque.py",
        "            return repr(value)\n        if isinstance(value, _NAMED)",
        "            return '0'\n        if isinstance(value, _NAMED)",
        _FUNCTIONS,
    ),
    Mutant(
        "branches are told without their code",
        "_aten/opaque.py",
        "                return text_of(held)\n        said",
        "                return ''\n        said",
        _FUNCTIONS,
    ),
    Mutant(
        "draws are one",
        "_aten/reading.py",
        "is_drawn(node, self.program.graph_module)",
        "False",
        _FUNCTIONS,
    ),
    Mutant(
        "what a program writes into does not matter",
        "_aten/reading.py",
        "            if spec.kind is not OutputKind.USER_OUTPUT:\n",
        "            if False:\n",
        _FUNCTIONS,
    ),
    Mutant(
        "older names of memory that is written into are not read",
        "_aten/in_place.py",
        "any(order[user] > order[node] for user in held.users)",
        "False",
        _FUNCTIONS,
    ),
    Mutant(
        "what gives back its data without saying so gives back other memory",
        "_aten/in_place.py",
        "if name in _FRESH or not target.has_kernel_for_dispatch_key(_COMPOSED):",
        "if True:",
        _FUNCTIONS,
    ),
    Mutant(
        "a number beyond the type it is brought to is as good as another one",
        "_aten/call.py",
        "        if not bool((far <=",
        "        if False and not bool((far <=",
        _FUNCTIONS,
    ),
    Mutant(
        "weights that PyTorch computes refute a file",
        "_aten/proof.py",
        "return proof.unsure if reader.has_computed else proof",
        "return proof",
        _PROOF,
    ),
    Mutant(
        "inputs of one name in another order are the same",
        "_aten/proof.py",
        "if names != others and sorted(names) == sorted(others):",
        "if False:",
        _PROOF,
    ),
    Mutant(
        "other weights of a recurrent operator do not matter",
        "_aten/recurrent.py",
        'inner, *(name or "" for name in rest)]',
        "inner]",
        _PROOF,
    ),
    Mutant(
        "a convolution by channel may have strides",
        "_aten/linear.py",
        ' and set(windows["strides"]) == {1}',
        "",
        _OPERATORS,
    ),
    Mutant(
        "the keys of outputs do not matter",
        "_aten/proof.py",
        "    if specs[0].out_spec != specs[1].out_spec:\n",
        "    if False:\n",
        _FUNCTIONS,
    ),
    Mutant(
        "a program that takes fewer sizes is the same",
        "_aten/proof.py",
        "    if not other.sizes.has(one.sizes):\n",
        "    if False:\n",
        _PROOF,
    ),
    Mutant(
        "numbers that are put out do not matter",
        "_aten/proof.py",
        "one.told != other.told or ",
        "",
        _PROOF,
    ),
    Mutant(
        "an operator whose values count is told the sizes alone of what it reads",
        "_aten/reading.py",
        '"ones_like", "rand_like"',
        '"ones_like", "special_bessel_j0", "rand_like"',
        "tests/torch/test_proved_verdict.py",
    ),
    Mutant(
        "sizes that an operator takes are not told",
        "_aten/reading.py",
        'given[0] = f"a tensor of {sizes}"',
        'given[0] = "a tensor"',
        "tests/torch/test_proved_verdict.py",
    ),
)
