"""What a run leaves open in a verdict on models of PyTorch, and their weights settle.

Caught here and nowhere else: a right fold without a verdict, for an output that is integers, or is
the same for all weights; a wrong one that passes for it; copies whose nodes lost their names.
"""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold._aten.proof import prove_programs  # noqa: E402
from bnfold._pipeline.modules import compare_programs  # noqa: E402

from .folding import rand, ready  # noqa: E402
from .merging import exported, ops  # noqa: E402

X = rand(2, 4, 4, 4, dtype=torch.float32)  # As many channels as places along an axis.


class Two(nn.Module):
    """A convolution with its norm, and something of what the convolution or the norm puts out."""

    def __init__(self, code):
        super().__init__()
        self.conv, self.norm, self.code = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), code
        self.register_buffer("anchors", torch.arange(6.0))

    def forward(self, x):
        before = self.conv(x)
        return self.code(self, before, self.norm(before))


def net(code):
    return ready(Two(code), torch.float32)


def wrong(model, factor=1.5):
    """Another weight in one channel, of a module or of a program."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        made.state_dict()["conv.weight"][1].mul_(factor)
    return made


CODES = {
    "places of the largest": lambda self, y, z: (z, z.argmax(1)),
    "places alone": lambda self, y, z: z.argmax(1),
    "signs": lambda self, y, z: (z, z > 0),
    "stored numbers": lambda self, y, z: (z, self.anchors * 2),
    "zeros_like": lambda self, y, z: (z, torch.zeros_like(y)),
    "new_zeros": lambda self, y, z: {"z": z, "state": y.new_zeros(1, 4)},
    "full_like of a part": lambda self, y, z: (z, torch.full_like(y[:, :1], 3.0)),
    "fill": lambda self, y, z: (z, torch.empty_like(y).fill_(2.0)),
    "copy": lambda self, y, z: (z, torch.empty_like(y).copy_(torch.ones(4, 1, 1))),
}


@pytest.mark.parametrize("name", CODES)
def test_what_outputs_do_not_show_weights_do(name):
    module = net(CODES[name])
    program = exported(module, X)
    folded = bnfold.fold(program)
    assert "batch_norm" not in ops(folded)
    assert compare_programs(program, folded, 0).status == "inconclusive"
    result = bnfold.verify(program, folded)
    assert result.status == "pass"
    assert result.proof is not None and result.proof.status == "proved"
    off = exported(wrong(bnfold.fold(module, (X,))), X)
    assert bnfold.verify(program, off).status != "pass"


@pytest.mark.parametrize("name", ["places alone", "new_zeros"])
def test_modules_are_exported_for_that(name):
    module = net(CODES[name])
    folded = bnfold.fold(module, (X,))
    assert bnfold.verify(module, folded, (X,)).status == "pass"
    assert bnfold.verify(module, wrong(folded), (X,)).status != "pass"


def test_weights_that_are_wrong_behind_integers_are_refuted():
    """The run sees no difference, as the largest channel is the largest by far."""

    def code(self, y, z):
        return (F.relu(z) + 1e6 * torch.arange(4.0).reshape(4, 1, 1)).argmax(1)

    module = net(code)
    program, folded = exported(module, X), bnfold.fold(module, (X,))
    off = exported(wrong(folded, 1.01), X)
    assert compare_programs(program, off, 0).status == "inconclusive"
    result = bnfold.verify(program, off)
    assert result.status == "fail"
    assert result.proof is not None and result.proof.status == "refuted"


@pytest.mark.parametrize("number", [2.0, 2.0000002])
def test_numbers_that_a_tensor_is_filled_with(number):
    """They are told apart, though no weight makes them."""
    module = net(lambda self, y, z: (z.argmax(1), torch.full_like(y, 2.0)))
    other = copy.deepcopy(module)
    other.code = lambda self, y, z: (z.argmax(1), torch.full_like(y, number))
    same = number == 2.0
    assert (bnfold.prove(exported(module, X), exported(other, X)).status == "proved") == same


def test_sizes_that_an_operator_takes_are_told_apart():
    """Both put out one number; where it comes from is another size."""
    pair = [
        exported(net(lambda self, y, z, size=size: z + torch.ones_like(y[:size]).sum()), X)
        for size in (1, 2)
    ]
    assert bnfold.prove(*pair).status != "proved"


def test_an_operator_without_a_rule_reads_its_data():
    module = net(lambda self, y, z: torch.special.bessel_j0(z))
    pair = [exported(each, X) for each in (module, wrong(module))]
    assert bnfold.prove(*pair).status != "proved"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_of_few_digits_settle_nothing(dtype):
    """What rounding explains there, an error of some % may be."""
    module = net(lambda self, y, z: z.argmax(1)).to(dtype)
    program = exported(module, X.to(dtype))
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.conv.weight[1, 0] *= 1.02
    off = exported(other, X.to(dtype))
    assert bnfold.verify(program, off).status != "pass"
    assert bnfold.verify(program, off).proof is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_verdict_lays_nothing_to_the_rounding_of_few_digits(dtype):
    """Neighbours are two numbers there, and what holds the very same ones is proved."""
    module = net(lambda self, y, z: (z.argmax(1), self.anchors)).to(dtype)
    program, apart = exported(module, X.to(dtype)), exported(wrong(module, 1), X.to(dtype))
    weight = apart.state_dict["conv.weight"].detach()
    weight.view(torch.int16)[1, 2] += 1
    assert (weight != module.conv.weight).sum() == 1
    assert prove_programs(program, apart).status == "proved"
    assert prove_programs(program, apart, halves_are_exact=True).status == "not proved"
    assert prove_programs(program, program, halves_are_exact=True).status == "proved"


def test_code_that_reads_numbers_is_not_proved():
    """The program that is exported has those of the example for good."""

    def code(self, y, z):
        return z.argmax(1) * (1 + int(y.detach().numpy().max() > 1e9))

    module = net(code)
    assert bnfold.verify(module, module, (X,)).status == "inconclusive"


# --- copies of programs -------------------------------------------------------------------------


class Named(nn.Module):
    """Its inputs have names that Python has, too. One of them is also an output."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, input, max):
        return max, self.norm(self.conv(input))


def test_a_copy_whose_nodes_have_other_names():
    """``copy.deepcopy`` renames "input" in the graph, and not in the signature."""
    module, other = ready(Named(), torch.float32), rand(2, 4, 4, 4, seed=9, dtype=torch.float32)
    program = torch.export.export(module, (X, other))
    given = copy.deepcopy(program)
    folded = bnfold.fold(given)
    assert "batch_norm" not in ops(folded)
    for one, two in zip(module(X, other), folded.module()(X, other), strict=True):
        torch.testing.assert_close(one, two)
    assert bnfold.verify(given, folded).status == "pass"
    assert bnfold.prove(program, copy.deepcopy(folded)).status == "proved"


def test_signs_that_are_the_same_pass_no_program():
    """An error of 1 % in each channel may show, and a smaller one in a channel not."""
    module, x = net(lambda self, y, z: z > 0.1), rand(16, 4, 4, 4, dtype=torch.float32)
    program = exported(module, x)
    found = bnfold.verify(program, exported(wrong(module, 1.0001), x))
    assert (found.status, found.checks[0].difference) == ("inconclusive", 0)
    assert "hide small errors" in str(found)
    assert bnfold.verify(program, bnfold.fold(program)).status == "pass"
