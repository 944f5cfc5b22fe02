"""What comes ahead of a product's alpha is in range if the sum is, whatever alpha makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

import bnfold
from bnfold._core import parameters
from bnfold._proof.certificate import certify

from .graphs import certified, codes, const, counts, done, model, op, rand, run

KINDS = ("Gemm", "Gemm, the constant ahead", "FusedMatMul")
# The size of the weights, alpha, the bias (None: there is none), the scale behind, what is wrong.
OUT_OF_RANGE = {
    "a dead channel that alpha brings to life": (1e-38, 1e36, None, 1e-5, "underflow"),
    "a bias in which a denormal weight shows, for alpha": (3e-38, 1e36, 1.0, 1e-5, "underflow"),
    "products below the normal range": (5e-33, 1e36, None, 1e-5, "underflow"),
    "products above the range": (1e5, 1e-30, None, 1e30, "overflow"),
    "products above the range, a bias": (1e5, -1e-30, 1.0, 1e30, "overflow"),
    "products above the range, and alpha makes nothing of them": (1e35, 0.0, 1.0, 1e3, "overflow"),
}
IN_RANGE = {
    "a dead channel": (4e-40, 1e4, None, 0.01),
    "a bias that drowns what is lost": (3e-38, 16.0, 1e3, 1e-5),
    "normal weights, a large alpha": (1.0, 1e36, None, 1e-5),
    "normal weights, a small alpha": (1.0, 1e-30, None, 1e10),
    "the alpha of an attention": (1.0, 0.125, 1.0, 3.0),
    "a negative alpha": (1.0, -2.0, 1.0, 1e-3),
    "no product": (1.0, 0.0, 1.0, 7.0),
}


def product(kind: str, size: float, alpha: float, bias: float | None, scale: float) -> ModelProto:
    """A product whose weights all have one size, with a scale behind."""
    w = (np.abs(rand(4, 4)) / 4 + 0.5) * size
    reads = "w x" if kind.endswith("ahead") else "x w"
    given = {"w": w.astype(np.float32)}
    attributes: dict[str, object] = {"alpha": alpha}
    if kind == "FusedMatMul":
        attributes["domain"] = "com.microsoft"
    elif bias is not None:
        reads, given["b"] = f"{reads} b", np.full((1, 1), bias, np.float32)
    name = kind.split(",")[0]
    return model(
        (op(name, reads, "g", name="product", **attributes), given),
        const("Mul", "g", "y", np.full((1, 1), scale, np.float32), name="mul"),
        x=(4, 4),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", OUT_OF_RANGE)
def test_what_alpha_would_show_stays(what: str, kind: str) -> None:
    """A planner that leaves alpha out would fold it; then the certificate sees it."""
    size, alpha, bias, scale, code = OUT_OF_RANGE[what]
    m = product(kind, size, alpha, bias, scale)
    assert codes(m)["mul"] == code
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameters.Site, "_alpha", 1.0)
        once = done(m)
        result, applied = once.folded, once.applied
    if applied:
        assert not all(c.holds for c in certify(m, result, applied))
    else:  # no bias in which anything might drown
        assert kind == "FusedMatMul" and bias is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", IN_RANGE)
def test_what_alpha_leaves_in_range_folds(what: str, kind: str) -> None:
    size, alpha, bias, scale = IN_RANGE[what]
    m = product(kind, size, alpha, bias, scale)
    if bias is not None and size < 1 and kind == "FusedMatMul":
        assert codes(m)["mul"] == "underflow"  # it has no bias
        return
    result = bnfold.fold(m)
    assert sum(counts(result).values()) == 1
    certified(m)
    data = {"x": rand(4, 4)}
    (wanted,), (found,) = run(m, data), run(result, data)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max() + 1e-30)


@pytest.mark.parametrize(("beta", "goes"), [(1.0, True), (1e-30, False), (0.0, False)])
def test_a_bias_drowns_what_is_lost_by_what_beta_leaves_of_it(beta: float, goes: bool) -> None:
    m = product("Gemm", 3e-38, 1.0, 1e3, 1e-5)
    m.graph.node[0].attribute.add(name="beta", type=1, f=beta)
    assert codes(m) == ({} if goes else {"mul": "underflow"})
    certified(m)
