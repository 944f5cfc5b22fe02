"""Networks in training form: exported, they fold to what their authors collapse by hand."""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402

import bnfold  # noqa: E402
from bnfold._torch.read.nodes import arguments  # noqa: E402

from ..cli.command import bnfold as command  # noqa: E402
from ..scripts import REPARAMETERIZED  # noqa: E402
from .merging import exported, ops, same  # noqa: E402

X = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
# Operators of ONNX and of PyTorch that are the same.
ALIKE = {"Conv": "conv2d", "Relu": "relu", "Gemm": "linear"}


@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_folds_to_the_collapsed_network(name, networks):
    network = networks.built(name)
    by_hand = networks.collapsed(network)
    program, wanted = exported(network, X), exported(by_hand, X)
    folded = bnfold.fold(program)
    assert ops(folded) == ops(wanted)
    assert "add" in ops(program) and "add" not in ops(folded)
    same(program, folded, X, 1e-6)
    assert bnfold.verify(program, folded).status == "pass"
    assert bnfold.plan(folded).folds == ()

    made = [node for node in folded.graph.nodes if "aten.conv2d" in str(node.target)]
    convs = [part for part in by_hand.modules() if isinstance(part, torch.nn.Conv2d)]
    parameters = folded.graph_signature.inputs_to_parameters
    for node, conv in zip(made, convs, strict=True):
        given = arguments(node)
        for name, exact in conv.named_parameters():
            stored = folded.state_dict[parameters[given[name].name]]
            torch.testing.assert_close(stored, exact, rtol=1e-6, atol=1e-6, check_stride=False)


@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_as_much_folds_as_in_onnx(name, networks, tmp_path):
    network = networks.built(name)
    networks.export(network, tmp_path / "network.onnx")
    of_file = bnfold.plan(onnx.load(tmp_path / "network.onnx"))
    of_program = bnfold.plan(exported(network, X))
    after = Counter({ALIKE[op]: n for op, n in of_file.after.items() if op in ALIKE})
    assert after == Counter({op: of_program.after.get(op, 0) for op in after})
    merges = [[f.laws for f in plan.folds if f.merges] for plan in (of_file, of_program)]
    assert merges[0] == merges[1] != []
    assert [k.code for k in of_file.kept] == [k.code for k in of_program.kept]


def test_a_module_says_it_once_for_each_block(networks):
    plan = bnfold.plan(networks.built("dbb"), (X,))
    kept = [each for each in plan.kept if each.kind == "merge"]
    assert [each.node for each in kept] == ["0.wide.0", "2.wide.0", "4.wide.0"]
    assert {each.code for each in kept} == {"not-a-module"}


def test_command(networks, tmp_path):
    source, target = tmp_path / "network.pt2", tmp_path / "fused.pt2"
    torch.export.save(exported(networks.built("repvgg"), X), source)
    done = command(source, "-o", target)
    assert (done.code, done.err) == (0, "")
    assert "verification: pass" in done.out
    assert "merged" in done.out
    assert ops(torch.export.load(target)).count("conv2d") == 4
