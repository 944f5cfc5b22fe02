"""How one operator of PyTorch becomes another one that ExecuTorch has, without ExecuTorch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.fx import Graph, GraphModule  # noqa: E402

from bnfold._torch.program.dialects import _as_convolution  # noqa: E402

CALLS = {
    "all": (6, ([2, 1], [1, 0], [1, 2], 2), {}),
    "few": (6, (), {}),
    "no bias": (6, None, {}),
    "by name": (6, None, {"groups": 2, "stride": [2, 2]}),
    "bias by name": (6, None, {"padding": [1, 1], "bias": "bias"}),
    "some by name": (6, ([2, 1],), {"dilation": [2, 1]}),
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", CALLS)
def test_a_convolution_however_it_is_called(name, dims):
    """What is left out has its default; what is named stands where it belongs."""
    out, more, named = CALLS[name]
    groups = named.get("groups", more[3] if more and len(more) > 3 else 1)
    torch.manual_seed(0)
    values = {
        "x": torch.randn(2, 4, *[7] * dims).double(),
        "w": torch.randn(out, 4 // groups, *[3] * dims).double(),
        "b": torch.randn(out).double(),
    }
    graph = Graph()
    x, w, b = map(graph.placeholder, values)

    def sized(value):
        return [*value, *value][:dims] if isinstance(value, list) else value

    kwargs = {key: b if value == "bias" else sized(value) for key, value in named.items()}
    args = (x, w) if more is None else (x, w, b, *map(sized, more))
    node = graph.call_function(getattr(torch.ops.aten, f"conv{dims}d").default, args, kwargs)
    graph.output(node)
    wanted = GraphModule({}, graph)(*values.values())
    node.args, node.kwargs = _as_convolution(node, dims), {}
    node.target = torch.ops.aten.convolution.default
    assert torch.allclose(GraphModule({}, graph)(*values.values()), wanted)
