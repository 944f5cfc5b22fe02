"""Operators that take the shape or the type of a tensor, and none of its values."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from bnfold._torch.read import nodes  # noqa: E402

from .carrying import program  # noqa: E402
from .folding import fold, rand, ready  # noqa: E402


class Net(nn.Module):
    """A function of the module, of its input, and of what its convolution makes of that."""

    def __init__(self, tail) -> None:
        super().__init__()
        self.conv, self.bn, self.tail = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), tail

    def forward(self, x):
        return self.tail(self, x, self.conv(x))


def both(tail, module_folds: int, program_folds: int | None = None, **options):
    """Fold a module, and a program of it, of which all sizes agree: C = H = W = batch."""
    x = rand(4, 4, 4, 4)
    done = fold(ready(Net(tail)), x, folds=module_folds, **options)
    folds = module_folds if program_folds is None else program_folds
    return done, program(ready(Net(tail)), x, folds=folds)


ASKING = {
    "reshape_as": lambda m, x, y: m.bn(y).flatten(1).reshape_as(y),
    "view_as": lambda m, x, y: m.bn(y).flatten(1).view_as(y),
    "expand_as": lambda m, x, y: m.bn(y) + x[:, :1].expand_as(y),
    "type_as": lambda m, x, y: m.bn(y).type_as(y),
    "to": lambda m, x, y: m.bn(y) * x.relu().to(y),
    "empty_like": lambda m, x, y: m.bn(y) + torch.empty_like(y).fill_(2.0),
    "full_like": lambda m, x, y: m.bn(y) * torch.full_like(y, 2.0),
    "ones_like": lambda m, x, y: m.bn(y) - torch.ones_like(y),
    "zeros_like": lambda m, x, y: torch.cat([m.bn(y), torch.zeros_like(y)], 1),
    "new_empty": lambda m, x, y: m.bn(y) + y.new_empty(4).zero_(),
    "new_full": lambda m, x, y: m.bn(y) + y.new_full((4, 1, 1), 3.0),
    "new_ones": lambda m, x, y: m.bn(y) + y.new_ones(4),
    "new_zeros": lambda m, x, y: torch.cat([m.bn(y), y.new_zeros(4, 2, 4, 4)], 1),
    "rand_like": lambda m, x, y: m.bn(y) + 0 * torch.rand_like(y),
    "randn_like": lambda m, x, y: m.bn(y) + 0 * torch.randn_like(y),
    "fill": lambda m, x, y: m.bn(y) * torch.ops.aten.fill(y, 2.0),
    "copy": lambda m, x, y: m.bn(y) * torch.ops.aten.copy(y, x),
    "zero": lambda m, x, y: m.bn(y) + torch.ops.aten.zero(y),
    "through a part": lambda m, x, y: m.bn(y) + torch.ones_like(y[:, :1].transpose(2, 3)),
    "through lists": lambda m, x, y: m.bn(y) + y.split(2, 1)[1].new_ones(4),
    "broadcast_tensors": lambda m, x, y: m.bn(y) + torch.broadcast_tensors(x[:, :1], y)[0],
    "result_type": lambda m, x, y: m.bn(y).to(torch.result_type(y, x)),
    "of what the norm puts out": lambda m, x, y: (z := m.bn(y)).relu() + torch.ones_like(z),
    "of a tensor that is read too": lambda m, x, y: m.bn(y.view_as(y)),
    "several": lambda m, x, y: m.bn(y).type_as(y).view_as(y) + x.expand_as(y).type_as(y),
}


@pytest.mark.parametrize("name", ASKING)
def test_no_reader_of_values(name):
    both(ASKING[name], 1)


def test_sizes_that_may_vary():
    """As LeViT has it: tokens are flattened for their norm, and get their shape back by another."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.bn = nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.linear(x)
            return self.bn(y.flatten(0, 1)).reshape_as(y)

    x, shapes = rand(4, 4, 3), ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    others = ((rand(2, 5, 3),),)
    fold(ready(Tokens()), x, folds=1, others=others, dynamic_shapes=shapes)
    program(ready(Tokens()), x, folds=1, dynamic_shapes=shapes)


READING = {
    "the data of view_as": lambda m, x, y: m.bn(y) + y.view_as(x),
    "the data of expand_as": lambda m, x, y: m.bn(y) + y.expand_as(x),
    "the data of type_as": lambda m, x, y: m.bn(y) + y.type_as(x),
    "the data of both": lambda m, x, y: m.bn(y) + y.view_as(y),
    "part and shape of a part": lambda m, x, y: m.bn(y) + (z := y[:, :1]) * torch.ones_like(z),
    "a sum of a list": lambda m, x, y: m.bn(y) + torch.broadcast_tensors(x, y)[1],
}


@pytest.mark.parametrize("name", READING)
def test_readers_of_values(name):
    """The same operators read the values of their first tensor, whoever tells the shape."""
    both(READING[name], 0, codes=["shared-output"])


def sized(tensor):
    """Zeros, as many as a number of a tensor says."""
    count = tensor.abs().sum().int().item()
    torch._check(count >= 0)
    torch._check(count < 10**6)
    return torch.zeros(count)


SIZED_BY_VALUES = {
    "places": lambda y: torch.ones_like(torch.nonzero(y.relu())),
    "a number of places": lambda y: torch.ones(1) * torch.nonzero(y > 0).shape[0],
    "places that are all": lambda y: torch.ones_like(
        torch._check((found := torch.nonzero(y.abs() >= 0)).shape[0] == 256) or found
    ),
    "selected values": lambda y: torch.zeros_like(y.masked_select(y > 0)),
    "masked rows": lambda y: y.new_ones(3) * y[y[:, 0, 0, 0] > 0].shape[0],
    "masked values that are all": lambda y: torch.ones_like(
        torch._check((found := y[y.abs() >= 0]).shape[0] == 256) or found
    ),
    "different values": lambda y: torch.zeros_like(torch.unique(y.relu())),
    "repeated values": lambda y: torch.ones_like(
        y[0, 0, 0].abs().long().repeat_interleave(y[0, 0, 0].abs().long())
    ),
    "a size": lambda y: torch.ones_like(sized(y)),
    "a size that is a number": lambda y: torch.ones(1) * sized(y).shape[0],
}


@pytest.mark.parametrize("name", SIZED_BY_VALUES)
def test_sizes_that_follow_from_values(name):
    """Who asks for such a size reads values."""
    tail = SIZED_BY_VALUES[name]
    both(lambda m, x, y: (m.bn(y), tail(y)), 0, codes=["shared-output"])


def test_places_that_are_numbers_tell_no_values():
    """As many rows as places, whatever rows and places are."""
    places = torch.tensor([2, 0])
    both(lambda m, x, y: m.bn(y) + torch.ones_like(y[:, places])[:, :1], 1)
    both(lambda m, x, y: (m.bn(y), torch.ones_like(y[0][y[0, 0, 0].long() % 4])), 1)


def test_what_no_operator_reads():
    """A program is all that runs. The code of a module may keep for itself what is not used."""
    both(lambda m, x, y: (y[:, :1], m.bn(y))[1], 0, 1)


def test_the_type_alone_is_taken_and_no_map_passes_a_conversion():
    def tail(m, x, y):
        return m.bn(y).type_as(x.int()).type_as(y)

    both(tail, 1)
    both(lambda m, x, y: m.bn(y.type_as(x.int()).type_as(y)), 0)


def test_an_operator_of_another_library_may_read_values():
    """Its name says nothing."""

    @torch.library.custom_op("bnfold_readers::zeros_like", mutates_args=())
    def double(self: torch.Tensor) -> torch.Tensor:
        return 2 * self

    double.register_fake(torch.empty_like)
    both(lambda m, x, y: m.bn(y) + torch.ops.bnfold_readers.zeros_like(y), 0)


class Ahead(nn.Module):
    def __init__(self, tail) -> None:
        super().__init__()
        self.bn, self.conv, self.tail = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), tail

    def forward(self, x):
        return self.tail(self, self.bn(x.sigmoid()))


@pytest.mark.parametrize(
    "tail",
    [
        lambda m, z: m.conv(z) + torch.zeros_like(z)[:, :3],
        lambda m, z: m.conv(z.flatten(1).view_as(z)),
        lambda m, z: m.conv(z.view_as(z)),
    ],
)
def test_maps_carried_forward_arrive_where_values_are_read(tail):
    fold(ready(Ahead(tail)), rand(4, 4, 4, 4), folds=1)
    program(ready(Ahead(tail)), rand(4, 4, 4, 4), folds=1)


WRITTEN = {
    "an asked tensor, later": (lambda m, x, y: (m.bn(y), torch.zeros_like(y.relu_()))[0], None),
    "an alias": (lambda m, x, y: (y.view_as(x).relu_(), m.bn(y))[1], 0),
    "an alias of the norm's output": (lambda m, x, y: (z := m.bn(y), z.type_as(y).relu_())[0], 1),
    "a tensor of the same shape": (
        lambda m, x, y: (z := torch.zeros_like(y), z.add_(1), m.bn(y) + z)[2],
        1,
    ),
    "asked after it was written": (
        lambda m, x, y: (z := m.bn(y), z.relu_(), z + torch.ones_like(y))[2],
        1,
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_writing_into_tensors_that_others_ask(name):
    tail, folds = WRITTEN[name]
    x = rand(4, 4, 4, 4)
    fold(ready(Net(tail)), x, folds=folds)
    program(ready(Net(tail)), x, folds=folds)


def test_parameters_that_others_ask():
    """The shape of a convolution's weight stays. A norm that goes takes its own with it."""
    both(lambda m, x, y: (m.bn(y), torch.ones_like(m.conv.weight)), 1)
    both(lambda m, x, y: (m.bn(y), x.type_as(m.conv.bias)), 1)
    both(lambda m, x, y: (m.bn(y), torch.ones_like(m.bn.weight)), 0, 1)
    both(lambda m, x, y: (m.bn(y), m.conv.weight.type_as(x) + 1), 0, 1)


def test_a_program_keeps_one_weight_where_others_ask_its_shape():
    net = ready(Net(lambda m, x, y: (m.bn(y), torch.ones_like(m.conv.weight))))
    folded = program(net, rand(4, 4, 4, 4), folds=1)
    assert sorted(folded.state_dict) == ["conv.bias", "conv.weight"]


def test_every_argument_that_is_asked_exists():
    """A wrong name would be passed over in silence."""
    for kind, asked in nodes._ASKED.items():
        packet = getattr(torch.ops.aten, kind, None) or getattr(torch.ops.prim, kind)
        found = [getattr(packet, name)._schema.arguments for name in packet.overloads()]
        for argument in asked:
            assert any(argument in [each.name for each in known] for known in found), kind


def test_getters_that_a_hand_made_graph_calls():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for target, args in (
        (torch.ops.aten.size.int, (x, 1)),
        (torch.ops.aten.dim.default, (x,)),
        (torch.ops.prim.dtype.default, (x,)),
        (torch.ops.prim.device.default, (x,)),
    ):
        assert nodes.values_read(graph.call_function(target, args)) == []
    assert nodes.values_read(graph.call_function(torch.ops.aten.view_as.default, (x, x))) == [x]
