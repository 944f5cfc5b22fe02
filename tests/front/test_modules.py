"""Modules of PyTorch behind the preprocessing of their input."""

from __future__ import annotations

import pytest

import bnfold
from bnfold import Preprocessing

from .camera import MEAN, STD, picture, seen

torch = pytest.importorskip("torch")
nn = torch.nn

EXAMPLE = (torch.zeros(2, 3, 6, 6),)
CAMERA = {"mean": MEAN, "std": STD, "channels": "gbr:rgb"}
PICTURE = Preprocessing(layout="nhwc", dtype="uint8", **CAMERA)


def same(network, folded, given, bound=3e-6, **how):
    """On a picture the folded module gives what the network gives on what it would have seen."""
    with torch.no_grad():
        wanted = network(torch.from_numpy(seen(given, **how)))
        found = folded(torch.from_numpy(given))
    assert (found - wanted).abs().max() <= bound * (wanted.abs().max() + 1)


def layers(padding):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=padding), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten()
    ).eval()


@pytest.mark.parametrize("padding", [0, 1])
def test_a_picture_gives_what_the_network_gave(padding):
    """Without padding nothing stays of the normalization; with it, one norm does."""
    network = layers(padding)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = bnfold.fold(network, EXAMPLE, preprocessing=PICTURE)
    same(network, folded, picture(2, 6, 6, 3), layout="nhwc:nchw", **CAMERA)
    assert folded.order is None
    assert isinstance(folded.normalization, nn.BatchNorm2d if padding else nn.Identity)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Reads(nn.Module):
    """Something else reads the input, or its weight, too."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.conv = nn.Conv2d(3, 3, 3)
        self.other = nn.Conv2d(3, 3, 3)
        if how in ("tied", "kept"):
            self.other.weight = self.conv.weight

    def forward(self, x):
        if self.how == "itself":
            return self.conv(x) + x[:, :, 1:-1, 1:-1]
        if self.how == "kept":
            return self.conv(x)
        if self.how == "twice":
            return self.conv(self.conv(x))
        if self.how == "tied":
            return self.other(self.conv(x).relu())
        if self.how == "two":
            return self.conv(x) * self.other(x).sigmoid()
        return self.other(x.flip(1)) + self.conv(x)


@pytest.mark.parametrize("how", ["itself", "kept", "twice", "tied", "two", "flipped"])
def test_who_else_reads_the_input_or_the_weight(how):
    network = Reads(how).eval()
    folded = bnfold.fold(network, EXAMPLE, preprocessing=PICTURE)
    assert (folded.order is None) == (how == "two")
    same(network, folded, picture(2, 6, 6, 3), layout="nhwc:nchw", **CAMERA)


def test_a_convolution_without_a_batch_reads_other_channels():
    """Of [3, 3, 5] preprocessing takes axis 1, which is a height there; a 3 is on both axes."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    folded = bnfold.fold(
        network, (torch.zeros(3, 3, 5),), preprocessing=Preprocessing(channels="gbr:rgb")
    )
    assert folded.order is not None
    same(network, folded, picture(3, 3, 5, dtype="float32"), channels="gbr:rgb")


def test_features():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).eval()
    how = {"mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0), "channels": "bca:abc"}
    folded = bnfold.fold(network, (torch.zeros(3, 3),), preprocessing=Preprocessing(**how))
    assert folded.order is None
    assert isinstance(folded.normalization, nn.Identity)
    same(network, folded, picture(3, 3, dtype="float32"), **how)


def test_sizes_that_vary():
    network = layers(1)[:3].eval()
    batch, side = torch.export.Dim("batch"), torch.export.Dim("side", min=4)
    folded = bnfold.fold(
        network, EXAMPLE, preprocessing=PICTURE, dynamic_shapes=({0: batch, 3: side},)
    )
    same(network, folded, picture(5, 6, 9, 3), layout="nhwc:nchw", **CAMERA)


def test_a_module_in_training_mode():
    """Its parts keep their modes; ``as_eval`` folds a copy."""
    network = layers(1).train()
    network[0].eval()
    for reads in ("gbr:rgb", "rgb:rgb"):
        with pytest.raises(bnfold.UsageError, match="in training mode"):
            bnfold.fold(network, EXAMPLE, preprocessing=Preprocessing(channels=reads, mean=1.0))
    folded = bnfold.fold(network, EXAMPLE, preprocessing=PICTURE, as_eval=True)
    assert [part.training for part in network[:2]] == [False, True]
    same(network.eval(), folded, picture(2, 6, 6, 3), layout="nhwc:nchw", **CAMERA)


def test_verify_takes_the_original_behind_it():
    network = layers(1)
    folded = bnfold.fold(network, EXAMPLE, preprocessing=PICTURE)
    assert bnfold.verify(network, folded, EXAMPLE, preprocessing=PICTURE).status == "pass"


WRONG = {
    "rgb for gbr": {"channels": "rgb"},
    "mean in other units": {"mean": (0.485, 0.456, 0.406)},
    "std forgotten": {"std": 1.0},
}


@pytest.mark.parametrize("name", WRONG)
def test_verify_notices_a_wrong_setting(name):
    network = layers(1)
    folded = bnfold.fold(network, EXAMPLE, preprocessing=PICTURE)
    wrong = Preprocessing(**{"layout": "nhwc", "dtype": "uint8", **CAMERA, **WRONG[name]})
    assert bnfold.verify(network, folded, EXAMPLE, preprocessing=wrong).status == "fail"


REFUSED = {
    "no example": ((), PICTURE, "it has to take one tensor"),
    "by name": (EXAMPLE, {"x": PICTURE}, "it has to take one tensor"),
    "two tensors": ((*EXAMPLE, *EXAMPLE), PICTURE, "it has to take one tensor"),
    "channels last": (EXAMPLE, Preprocessing(layout="nhwc:nhwc"), "channels along axis 1"),
    "other channels": (EXAMPLE, Preprocessing(mean=(1.0, 2.0)), "3 channels along axis 1, not 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_module_cannot_have_is_refused(name):
    args, wanted, message = REFUSED[name]
    with pytest.raises(bnfold.UsageError, match=message):
        bnfold.fold(layers(0), args or None, preprocessing=wanted)


def test_in_place_is_refused():
    with pytest.raises(bnfold.UsageError, match="leave out inplace"):
        bnfold.fold(layers(0), EXAMPLE, preprocessing=PICTURE, inplace=True)
    program = torch.export.export(layers(0), EXAMPLE)
    with pytest.raises(bnfold.UsageError, match="preprocessing"):
        bnfold.fold(program, preprocessing=PICTURE)
