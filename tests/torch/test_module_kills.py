"""Bugs planted in the state of modules: none passes in any type. The benchmark has them all."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from ..scripts import load  # noqa: E402

kills = load("benchmarks", "module_kills")


@pytest.mark.parametrize(
    "name, dtype, bugs",
    [
        ("plain", torch.bfloat16, ["epsilon left out once", "one channel x 1.01"]),
        ("upsampling", torch.float16, ["ConvTranspose axis 0", "group order"]),
        ("ahead", torch.float32, ["shift across padding", "negative through pool"]),
        ("plain", torch.float64, ["one channel x 1.01", "bias unscaled"]),
    ],
)
def test_no_bug_passes_and_no_right_fold_fails(name, dtype, bugs):
    found = list(kills.cases(name, dtype, bugs))
    assert [case.bug for case in found[::2]] == [*bugs, kills.RIGHT]
    for case in found:
        if case.bug == kills.RIGHT:
            assert case.status == "pass", case
        else:
            assert case.changes, case
            assert case.status != "pass", case


def test_every_bug_has_a_place():
    """And changes the function of some network."""
    left = set(kills.PLANTS)
    for name in kills.NETWORKS:
        for bug in list(left):
            wrong, right = kills.drawn(name), kills.drawn(name)
            x = torch.randn(kills.IMAGE, dtype=torch.float64)
            with torch.no_grad():
                if kills.PLANTS[bug](wrong) and not torch.allclose(wrong(x), right(x), rtol=1e-3):
                    left.discard(bug)
    assert not left
