"""Sparse initializers as weights: they fold, and stay sparse."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold

from . import graphs
from .graphs import bn, const, counts, model, op, rand, subgraph

Array = Any


def few(*shape: int) -> Array:
    """A weight of which most are 0, and no whole row or column."""
    values = rand(*shape)
    where = np.add.outer(np.arange(shape[0]), np.arange(values[0].size)).reshape(shape)
    return np.where(where % 3 == 0, values, np.float32(0))


def sparse(name: str, values: Array, rows: bool = False) -> onnx.SparseTensorProto:
    """The indices in one row, or one row of them for each number."""
    places = np.argwhere(values) if rows else np.flatnonzero(values)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(values[values != 0], name),
        numpy_helper.from_array(places.astype(np.int64), f"{name} places"),
        values.shape,
    )


def thinned(made: ModelProto, *names: str, rows: bool = False) -> ModelProto:
    """The same model with some initializers sparse."""
    for name in names:
        (tensor,) = (t for t in made.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor)
        made.graph.initializer.remove(tensor)
        made.graph.sparse_initializer.append(sparse(name, values, rows))
    return made


def stored(made: ModelProto) -> dict[str, tuple[Array, Array]]:
    return {
        t.values.name: (numpy_helper.to_array(t.values), numpy_helper.to_array(t.indices))
        for t in made.graph.sparse_initializer
    }


def folds(made: ModelProto, **left: int) -> ModelProto:
    """To these operators, which compute the same in onnxruntime, with certificates that hold."""
    once = graphs.done(made)
    assert counts(once.folded) == left
    graphs.certified(made, once)
    data = graphs.feeds(made)
    for was, now in zip(graphs.run(made, data), graphs.run(once.folded, data), strict=True):
        assert np.allclose(was, now, rtol=1e-4, atol=1e-4 * np.abs(was).max(initial=1.0))
    return once.folded


@pytest.mark.parametrize("rows", [False, True])
def test_a_norm_goes_into_a_sparse_kernel(rows):
    """C = H = W by accident. Its shape is known, too: the map is along the channels."""
    made = model(
        op("Conv", "x w", "h", name="conv"), bn("map", "h", "y", 4),
        x=(2, 4, 4, 4), weights={"w": few(4, 4, 1, 1)},
    )  # fmt: skip
    made = thinned(made, "w", rows=rows)
    folded = folds(made, Conv=1)
    was, now = stored(made)["w"], stored(folded)["w"]
    assert np.array_equal(was[1], now[1]) and was[0].shape == now[0].shape
    assert {t.name for t in folded.graph.initializer} == {"w_bias"}


def test_a_map_ahead_goes_into_a_sparse_kernel():
    made = model(
        const("Mul", "x", "s", rand(4, 1, 1)), const("Add", "s", "t", rand(4, 1, 1)),
        op("Conv", "t w b", "y", name="conv"),
        x=(2, 4, 4, 4), weights={"w": few(4, 4, 3, 3), "b": rand(4)},
    )  # fmt: skip
    folded = folds(thinned(made, "w"), Conv=1)
    assert list(stored(folded)) == ["w"]


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_a_norm_goes_into_a_sparse_matrix(kind):
    made = model(
        op(kind, "x w", "h", name="product"), bn("map", "h", "y", 4),
        x=(2, 4), weights={"w": few(4, 4)},
    )  # fmt: skip
    folded = folds(thinned(made, "w"), Gemm=1)
    assert list(stored(folded)) == ["w"]


def test_two_readers_of_a_sparse_weight_get_one_each():
    """Both stay sparse; what nobody reads any more is gone."""
    made = model(
        op("Conv", "x w", "h", name="c1"), bn("n1", "h", "y", 4),
        op("Conv", "x w", "k", name="c2"), bn("n2", "k", "z", 4),
        x=(2, 4, 4, 4), y="y z", weights={"w": few(4, 4, 1, 1)},
    )  # fmt: skip
    folded = folds(thinned(made, "w"), Conv=2)
    (one, first), (other, second) = stored(folded).values()
    assert np.array_equal(first, second) and not np.array_equal(one, other)


def test_a_sparse_bias_becomes_dense():
    """A shift leaves no 0 where it was."""
    made = model(
        op("Conv", "x w b", "h", name="conv"), bn("map", "h", "y", 4), x=(2, 4, 4, 4),
        weights={"w": rand(4, 4, 1, 1), "b": np.array([0, 2, 0, -1], np.float32)},
    )  # fmt: skip
    folded = folds(thinned(made, "b", "map.bias"), Conv=1)
    assert not stored(folded)


def test_in_a_body_and_from_outside_of_it():
    then = subgraph(op("Conv", "x w", "h", name="c1"), bn("n1", "h", "t", 4), y="t")
    other = subgraph(op("Conv", "x w", "k", name="c2"), bn("n2", "k", "e", 4), y="e")
    inner = sparse("v", few(4, 4, 1, 1))
    then.sparse_initializer.append(inner)
    then.node[0].input[1] = "v"
    branches = op("If", "cond", "y", name="if", then_branch=then, else_branch=other)
    made = model(
        branches, x=(2, 4, 4, 4), weights={"w": few(4, 4, 1, 1), "cond": np.array(True)}
    )  # fmt: skip
    once = graphs.done(thinned(made, "w"))
    assert counts(once.folded) == {"If": 1, "Conv": 2}
    graphs.certified(made, once)
    data = graphs.feeds(made)
    assert np.allclose(graphs.run(made, data)[0], graphs.run(once.folded, data)[0], atol=1e-4)


def test_parallel_kernels_stay_apart_where_one_is_sparse():
    """Their sum would be dense: the file would grow."""
    made = model(
        op("Conv", "x w", "a", name="c1"), op("Conv", "x v", "b", name="c2"),
        op("Add", "a b", "y"),
        x=(2, 4, 4, 4), weights={"w": few(4, 4, 1, 1), "v": rand(4, 4, 1, 1)},
    )  # fmt: skip
    assert counts(graphs.done(made).folded) == {"Conv": 1}
    once = graphs.done(thinned(made, "w"))
    assert counts(once.folded) == {"Conv": 2, "Add": 1}
    assert "merge-cost" in {k.code for k in once.plan.kept}


def test_a_sparse_initializer_that_a_caller_may_set_stays():
    made = model(
        op("Conv", "x w", "h", name="conv"), bn("map", "h", "y", 4),
        x=(2, 4, 4, 4), weights={"w": few(4, 4, 1, 1)},
    )  # fmt: skip
    made = thinned(made, "w")
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 4, 1, 1)))
    assert graphs.codes(made) == {"map": "overridable-weight"}


def placed(where: Any) -> Any:
    indices = numpy_helper.from_array(np.array(where, np.int64))
    return lambda tensor: tensor.indices.CopyFrom(indices)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: t.dims.__setitem__(2, 1 << 40), "elements"),
        (placed([99, 1, 2]), "its indices are not"),
        (placed([-1, 1, 2]), "its indices are not"),
        (placed([1, 1, 2]), "one place"),
        (placed([1, 2]), "its indices are not"),
        (placed([[1], [2], [3]]), "its indices are not"),
        (placed([[0, 0, 0, 4], [0, 0, 0, 0], [1, 0, 0, 0]]), "its indices are not"),
    ],
    ids=["too large", "outside", "negative", "twice", "too few", "one axis", "beyond an axis"],
)  # fmt: skip
def test_what_is_no_tensor_has_a_reason(change, says):
    made = model(op("Conv", "x w", "h", name="conv"), bn("map", "h", "y", 4), x=(2, 4, 4, 4))
    values = np.zeros((4, 4, 1, 1), np.float32)
    values.reshape(-1)[[0, 5, 15]] = 1
    made.graph.sparse_initializer.append(sparse("w", values))
    change(made.graph.sparse_initializer[0])
    (kept,) = graphs.done(made).plan.kept
    assert kept.code == "dynamic-weight" and says in kept.message, kept


def test_external_numbers_stay_external(tmp_path):
    """What lies in another file is read from there, and written there again."""
    made = model(
        op("Conv", "x w", "h", name="conv"), bn("map", "h", "y", 64),
        x=(2, 64, 4, 4), weights={"w": few(64, 64, 3, 3)},
    )  # fmt: skip
    made = thinned(made, "w")
    data = graphs.feeds(made)
    wanted = graphs.run(made, data)
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    values = made.graph.sparse_initializer[0].values
    raw = values.raw_data
    (tmp_path / "in.data").write_bytes(raw)
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value="in.data")
    source.write_bytes(made.SerializeToString())
    bnfold.fold(source, target)
    folded = onnx.load(target, load_external_data=False)
    assert counts(folded) == {"Conv": 1}
    inside = onnx.load(target)
    for tensor in inside.graph.sparse_initializer:
        if tensor.values.data_location == TensorProto.EXTERNAL:
            onnx.external_data_helper.load_external_data_for_tensor(tensor.values, str(tmp_path))
            tensor.values.data_location = TensorProto.DEFAULT
    now = graphs.run(inside, data)
    assert np.allclose(wanted[0], now[0], rtol=1e-4, atol=1e-4 * np.abs(wanted[0]).max())


def test_it_verifies():
    made = model(
        op("Conv", "x w", "h", name="conv"), bn("map", "h", "y", 4),
        x=(2, 4, 8, 8), weights={"w": few(4, 4, 3, 3)},
    )  # fmt: skip
    made = thinned(made, "w")
    assert bnfold.verify(made, bnfold.fold(made)).status == "pass"
