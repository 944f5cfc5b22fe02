"""Folding without example inputs: what a symbolic trace can tell, and nothing else."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import bnfold  # noqa: E402
from bnfold import UsageError  # noqa: E402

from .folding import ready  # noqa: E402


def network():
    return ready(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * 15 * 15, 5),
            nn.BatchNorm1d(5),
        )
    )


def test_what_is_certain_folds_and_the_rest_asks_for_inputs():
    module = network()
    folded = bnfold.fold(module)
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(folded[6], nn.BatchNorm1d)
    (kept,) = bnfold.plan(module).kept
    assert (kept.node, kept.code) == ("6", "unknown-shape")
    assert "example inputs" in kept.message
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(folded(x), module(x), rtol=1e-10, atol=1e-10)


def test_with_inputs_all_of_it_folds():
    folded = bnfold.fold(network(), (torch.rand(4, 3, 32, 32, dtype=torch.float64),))
    assert isinstance(folded[6], nn.Identity)


def test_a_linear_layer_may_see_three_dimensions():
    """On (N, 5, 5) the BatchNorm acts along another axis than the layer before it."""
    module = ready(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)))
    assert [kept.code for kept in bnfold.plan(module).kept] == ["unknown-shape"]
    assert isinstance(bnfold.fold(module)[1], nn.BatchNorm1d)


class Choosing(nn.Module):
    """Its code looks at the input."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(x)) if x.sum() > 0 else x


class Elementwise(nn.Module):
    """Nothing says what it takes."""

    def forward(self, x):
        return x * 2


class Never(nn.Module):
    """No size of image gives a linear layer of seven inputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 5, 3), nn.Linear(7, 2)

    def forward(self, x):
        return self.linear(self.conv(x).flatten(1))


@pytest.mark.parametrize("kind", [Choosing, Elementwise, Never])
def test_what_cannot_be_traced_asks_for_inputs(kind, capfd):
    with pytest.raises(UsageError, match=r"give example inputs: bnfold\.fold\(module, \(example,"):
        bnfold.fold(kind().eval())
    assert capfd.readouterr().err == ""


def test_training_mode_is_said_first():
    with pytest.raises(UsageError, match="training mode"):
        bnfold.fold(network().train())
    assert isinstance(bnfold.fold(network().train(), as_eval=True)[1], nn.Identity)
