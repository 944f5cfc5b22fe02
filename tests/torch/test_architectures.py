"""Fold and export, or export and fold: one engine, so the same operators are left either way."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from ..scripts import load  # noqa: E402

benchmark = load("benchmarks", "architectures")

# Affine operators of the exported original, of its fold, and of the folded module's export. They
# differ where a map is in a module's own code and not in a submodule; the benchmark says by which
# operators, and these tests hold it to that.
COUNTS = {
    "resnet": (20, 0, 0),
    "preact-resnet": (7, 2, 2),
    "densenet": (22, 12, 12),
    "mobilenet-v2": (16, 0, 0),
    "pool-first": (3, 1, 1),
    "dcgan": (3, 0, 0),
    "unet": (12, 0, 0),
    "tcn": (6, 0, 0),
    "pointnet": (7, 0, 0),
    "convnext": (18, 15, 15),
    "convnext-inline": (18, 15, 18),
    "vit": (21, 15, 17),
    "levit": (13, 7, 10),
    "crepe": (3, 3, 3),
    "resmlp": (26, 16, 18),
    "nfnet": (12, 0, 12),
}


def test_every_architecture_has_its_counts():
    assert set(COUNTS) == set(benchmark.ARCHITECTURES)


# Where the two ways leave the same operators there are several; these have something of their own.
USUAL = ("convnext-inline", "crepe", "levit", "nfnet", "pool-first", "resmlp", "unet", "vit")


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in COUNTS]
)
def test_module_then_export_equals_export_then_file(name):
    outcome = benchmark.both_ways(name)
    architecture = benchmark.ARCHITECTURES[name]
    assert outcome.verdicts == {"file": "pass", "module": "pass"}
    assert outcome.left == dict(architecture.left)
    assert not architecture.left or architecture.code in outcome.reasons
    assert outcome.complaints == []
    models = (outcome.original, outcome.by_file, outcome.by_module)
    assert tuple(benchmark.affine_operators(model) for model in models) == COUNTS[name]


def test_the_comparison_sees_a_fold_that_is_missing():
    module, inputs = benchmark.make("mobilenet-v2")
    original = benchmark.exported(module, inputs)
    outcome = benchmark.Outcome("mobilenet-v2", original, original, original, (), {}, 0.0)
    assert outcome.complaints == []
    folded = benchmark.bnfold.fold(original)
    outcome = benchmark.Outcome("mobilenet-v2", original, folded, original, (), {}, 0.0)
    assert outcome.left == {"BatchNormalization": 16}
    assert len(outcome.complaints) == 1


@pytest.mark.parametrize("name", ["resnet", "mobilenet-v2", "levit"])
def test_statistics_are_those_of_the_inputs(name):
    """The networks are worth folding: varied statistics, γ of both signs, outputs that differ."""
    module, inputs = benchmark.make(name)
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    for norm in norms:
        assert norm.running_var.min() > 0 and norm.running_var.std() > 0
        assert norm.running_mean.abs().max() > 0
    gammas = torch.cat([norm.weight for norm in norms])
    assert gammas.min() < 0 < gammas.max()
    with torch.no_grad():
        first, second = module(inputs)
    assert (first - second).abs().max() > 1e-2 * (first.std() + second.std())


def test_the_same_weights_are_drawn_every_time():
    (first, x), (second, y) = benchmark.make("unet"), benchmark.make("unet")
    assert torch.equal(x, y)
    again = second.state_dict()
    assert all(torch.equal(values, again[name]) for name, values in first.state_dict().items())
