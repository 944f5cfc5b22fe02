"""Networks in training form fold to what their authors collapse by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold
from bnfold._proof.certificate import certify

from ..graphs import counts, done, run
from ..scripts import REPARAMETERIZED

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("cheap_exports")


@pytest.fixture(scope="module")
def exported(networks, tmp_path_factory):
    """A network as a model, "trained" or "plain" (collapsed by hand), exported once."""
    known = {}

    def get(name, form, dynamo=False):
        if (name, form, dynamo) not in known:
            network = networks.built(name)
            network = networks.collapsed(network) if form == "plain" else network
            path = tmp_path_factory.mktemp(name) / f"{form}.onnx"
            networks.export(network, path, dynamo)
            known[name, form, dynamo] = onnx.load(path).SerializeToString()
        return onnx.ModelProto.FromString(known[name, form, dynamo])

    return get


@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_collapsed_by_hand_is_the_same_function(name, networks):
    """What the tests below compare with is right, in float64 but for the rounding of weights."""
    network = networks.built(name)
    x = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        wanted = network.double()(x)
        found = networks.collapsed(network).double()(x)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_folds_to_the_collapsed_network(name, networks, exported):
    network = networks.built(name)
    made, by_hand = exported(name, "trained"), exported(name, "plain")
    assert counts(made)["BatchNormalization"] >= 4
    folded = bnfold.fold(made)
    assert counts(folded) == counts(by_hand)
    assert [n.op_type for n in folded.graph.node] == [n.op_type for n in by_hand.graph.node]
    assert bnfold.verify(made, folded).status == "pass"
    assert bnfold.plan(folded).folds == ()

    x = np.random.default_rng(0).normal(size=(1, 3, 24, 24)).astype(np.float32)
    with torch.no_grad():
        exact = network.double()(torch.from_numpy(x).double()).numpy()
    (scores,) = run(folded, {"image": x})
    assert np.abs(scores - exact).max() <= 2e-5 * np.abs(exact).max()


@pytest.mark.parametrize("name", REPARAMETERIZED)
def test_every_merge_is_certified(name, exported):
    made = exported(name, "trained")
    once = done(made)
    folded, applied = once.folded, once.applied
    certificates = certify(made, folded, applied)
    assert [c for c in certificates if not c.holds] == []
    assert [c for c in certificates if c.law == "merge"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n != "dbb" else n for n in REPARAMETERIZED],
)
def test_from_the_newer_exporter(name, exported):
    pytest.importorskip("onnxscript")
    made, by_hand = exported(name, "trained", dynamo=True), exported(name, "plain")
    folded = bnfold.fold(made)
    assert counts(folded)["Conv"] == counts(by_hand)["Conv"]
    assert not {"BatchNormalization", "Add", "Sub", "Mul"} & set(counts(folded))
    assert bnfold.verify(made, folded).status == "pass"
