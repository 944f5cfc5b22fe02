"""The certificate on small folds of every kind: it holds for right ones and for nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from bnfold._onnx.files.load import load_model
from bnfold._proof import absorption
from bnfold._proof.certificate import certify

from ..graphs import (
    FLOAT,
    bn,
    const,
    conv,
    conv_transpose,
    model,
    op,
    positive,
    rand,
    subgraph,
    tensor,
)
from .folds import (
    BITS,
    CASES,
    SPLIT,
    STANDING,
    Folded,
    case,
    every_case,
    every_type,
    folded,
    none_holds,
    put,
    values,
)

Array = Any
SLOW = pytest.mark.slow


@pytest.fixture(params=[1 << 20, 5], ids=["whole", "in parts"])
def _at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights are looked at part by part; these are small, so that the parts have to be."""
    monkeypatch.setattr(absorption, "_AT_ONCE", request.param)


part_by_part = pytest.mark.usefixtures("_at_once")
"""For what is about numbers of weights, and not about operators."""


@pytest.fixture(params=[pytest.param(1 << 20, marks=SLOW), 5], ids=["whole", "in parts"])
def _mostly_in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is whole is one part: what parts notice, it notices, and those tests that take
    both ways have shown that it can.
    """
    monkeypatch.setattr(absorption, "_AT_ONCE", request.param)


in_parts = pytest.mark.usefixtures("_mostly_in_parts")


@part_by_part
@every_type
@every_case
def test_right_fold_holds(name: str, elem: str) -> None:
    done = case(name, elem)
    assert done.new() or name == "gemm-ignored-c"
    for fold, certificate in zip(done.applied, done.certificates(), strict=True):
        assert certificate.holds
        assert certificate.ulps <= 1
        assert certificate.problem == ""
        labels = [n.name for n in done.original.graph.node]
        assert certificate.into == labels[fold.into]
        assert certificate.maps == tuple(labels[i] for i in fold.maps)


@part_by_part
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=SLOW) for n in range(4, 60))])
def test_right_fold_of_any_numbers_holds(seed: int) -> None:
    for name, build in CASES.items():
        made = build()
        rng = np.random.default_rng(seed)
        for stored in made.graph.initializer:
            old = numpy_helper.to_array(stored)
            new = 10 ** rng.uniform(-3, 3, old.shape)
            if not stored.name.endswith("var"):
                new *= rng.choice([-1, 1], old.shape)
            stored.CopyFrom(tensor(new.astype(old.dtype), stored.name))
        for certificate in folded(made).certificates():
            assert certificate.holds, (name, certificate)


def branches() -> ModelProto:
    then = subgraph(conv("one", "x", "c1", (4, 3, 3, 3)), bn("bn1", "c1", "t", 4), y="t")
    other = subgraph(conv("two", "x", "c2", (4, 3, 3, 3)), bn("bn2", "c2", "e", 4), y="e")
    node = op("If", "cond", "y", name="if", then_branch=then, else_branch=other)
    made = model(node, x=(2, 3, 8, 8))
    made.graph.input.append(helper.make_tensor_value_info("cond", onnx.TensorProto.BOOL, ()))
    return made


def function() -> ModelProto:
    nodes = [
        op("Constant", "", "w", value=tensor(rand(4, 3, 3, 3), "")),
        op("Conv", "a w", "c", name="conv"),
        *(op("Constant", "", n, value=tensor(rand(4), "")) for n in ("s", "t", "m")),
        op("Constant", "", "v", value=tensor(positive(4), "")),
        op("BatchNormalization", "c s t m v", "b", name="bn", epsilon=0.01),
    ]
    body = helper.make_function("my", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])
    return model(
        op("F", "x", "y", domain="my"), x=(2, 3, 8, 8), functions=[body], domains={"my": 1}
    )


@part_by_part
@pytest.mark.parametrize("build, count", [(branches, 2), (function, 1)])
def test_right_fold_inside_another_graph_holds(build: Callable[[], ModelProto], count: int) -> None:
    done = folded(build())
    found = done.certificates()
    assert len(found) == count
    assert all(c.holds and c.graph for c in found)


def test_wrong_number_in_a_branch_is_seen_there_only() -> None:
    done = folded(branches())
    wrong = done.copy()
    then = next(a.g for a in wrong.graph.node[0].attribute if a.name == "then_branch")
    stored = next(t for t in then.initializer if t.name.startswith("one.w"))
    stored.CopyFrom(tensor(nudged(numpy_helper.to_array(stored), 0, 2), stored.name))
    held = {c.into: c.holds for c in done.certificates(wrong)}
    assert held == {"one": False, "two": True}


def test_weights_in_external_files(tmp_path: Path) -> None:
    paths = [tmp_path / side / "m.onnx" for side in ("old", "new")]
    done = case("conv-2d")
    for path, proto in zip(paths, (done.original, done.folded)):
        path.parent.mkdir()
        onnx.save(proto, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    models = [load_model(path) for path in paths]
    (certificate,) = certify(*models, done.applied, *(path.parent for path in paths))
    assert certificate.holds
    other = case("conv-square")
    onnx.save(other.folded, paths[1], save_as_external_data=True, location="m.bin")
    (certificate,) = certify(
        models[0], load_model(paths[1]), done.applied, *(p.parent for p in paths)
    )
    assert not certificate.holds


# --- wrong numbers -----------------------------------------------------------------------------


def nudged(array: Array, place: int, steps: int) -> Array:
    """The array with one number some representable steps further from zero."""
    bits = array.reshape(-1).view(BITS[array.dtype.itemsize]).copy()
    bits[place] += bits.dtype.type(steps)
    return bits.view(array.dtype).reshape(array.shape)


def spots(array: Array) -> Iterator[int]:
    return iter(sorted({0, array.size // 2, array.size - 1}))


def least(name: str, elem: str) -> int:
    """How many steps no right number can be off. Float64 forgives what computing in it may lose;
    where something still stands behind the operator, two or three numbers are rounded each.
    """
    return (64 if name in SPLIT + STANDING else 2) * (4096 if elem == "fp64" else 1)


@part_by_part
@every_type
@every_case
def test_number_that_is_off_is_seen(name: str, elem: str) -> None:
    done = case(name, elem)
    for constant in done.new():
        right = values(done.folded, constant)
        for place in spots(right):
            if right.reshape(-1)[place] == 0:  # the mean of a new BatchNormalization
                continue
            wrong = done.copy()
            put(wrong, constant, nudged(right, place, least(name, elem)))
            assert none_holds(done.certificates(wrong)), (constant, place)


AHEAD: dict[str, Callable[[], ModelProto]] = {
    "conv-grouped": lambda: model(
        bn("bn", "x", "n", 4), conv("conv", "n", "y", (6, 2, 2, 2), group=2), x=(2, 4, 5, 6)
    ),
    "conv-transpose": lambda: model(
        bn("bn", "x", "n", 4), conv_transpose("up", "n", "y", (4, 3, 1, 1)), x=(2, 4, 5, 6)
    ),
    "gemm": lambda: model(
        bn("bn", "x", "n", 4),
        (op("Gemm", "n fc.w", "y", name="fc"), {"fc.w": rand(4, 3)}),
        x=(5, 4),
    ),
    "gemm-turned": lambda: model(
        bn("bn", "x", "n", 4),
        (op("Gemm", "n fc.w", "y", name="fc", transB=1, alpha=0.5), {"fc.w": rand(3, 4)}),
        x=(5, 4),
    ),
    "gemm-left": lambda: model(
        const("Mul", "x", "s", rand(4, 1)),
        const("Add", "s", "n", rand(4, 1)),
        (op("Gemm", "fc.w n", "y", name="fc"), {"fc.w": rand(5, 4)}),
        x=(4, 3),
    ),
    "matmul": lambda: model(
        const("Mul", "x", "n", rand(4)),
        (op("MatMul", "n mm.w", "m", name="mm"), {"mm.w": rand(4, 3)}),
        const("Add", "m", "y", rand(3)),
        x=(2, 5, 4),
    ),
}


@part_by_part
@pytest.mark.parametrize("name", AHEAD)
def test_number_of_an_operator_that_absorbed_what_came_ahead_is_seen(name: str) -> None:
    done = folded(AHEAD[name]())
    certificates = done.certificates()
    assert len(done.folded.graph.node) < len(done.original.graph.node)
    assert certificates and all(c.holds for c in certificates), certificates
    assert done.new()
    for constant in done.new():
        right = values(done.folded, constant)
        for place in range(right.size):
            wrong = done.copy()
            put(wrong, constant, nudged(right, place, 200))
            assert not all(c.holds for c in done.certificates(wrong)), (constant, place)


@part_by_part
@pytest.mark.parametrize("name", ["conv-2d", "transposed-grouped", "gemm-full-c", "layer-norm"])
def test_rounding_to_either_side_is_forgiven(name: str) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        for place in spots(right):
            wrong = done.copy()
            put(wrong, constant, nudged(right, place, 1))
            (certificate,) = done.certificates(wrong)
            assert 0.5 <= certificate.ulps < 1.5


@in_parts
@every_case
def test_swapped_channels_are_seen(name: str) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        for axis, size in enumerate(right.shape):
            if size == 1 or not right.any():
                continue
            for turned in (np.roll(right, 1, axis), np.flip(right, axis)):
                if (turned == right).all():
                    continue
                wrong = done.copy()
                put(wrong, constant, turned)
                assert none_holds(done.certificates(wrong)), (constant, axis)


@in_parts
@every_case
def test_one_channel_off_by_a_percent_is_seen(name: str) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        for axis, size in enumerate(right.shape):
            factors = np.ones(size, np.float32)
            factors[size // 2] = 1.01
            wrong = done.copy()
            along = factors.reshape([size if k == axis else 1 for k in range(right.ndim)])
            put(wrong, constant, right * along)
            assert none_holds(done.certificates(wrong)) == bool(right.any()), (constant, axis)


@in_parts
@every_case
def test_numbers_of_before_are_seen(name: str) -> None:
    """Each constant that the fold wrote is put back to what its operator read before."""
    done = case(name)
    before = next(n for n in done.original.graph.node if n.name == done.node(done.folded).name)
    for at, constant in enumerate(done.node(done.folded).input):
        if constant not in done.new() or at >= len(before.input):
            continue
        wrong = done.copy()
        old = values(done.original, before.input[at])
        put(wrong, constant, np.broadcast_to(old, values(wrong, constant).shape).copy())
        assert none_holds(done.certificates(wrong)), constant


@in_parts
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0], ids=str)
@every_case
def test_special_numbers_are_seen(name: str, value: float) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        if not right.any():
            continue
        wrong, spoilt = done.copy(), right.copy()
        spoilt.reshape(-1)[0] = value
        put(wrong, constant, spoilt)
        assert none_holds(done.certificates(wrong)), constant


@pytest.mark.parametrize("name", list(CASES))
def test_numbers_of_another_shape_are_seen(name: str) -> None:
    done = case(name)
    for constant in done.new():
        right = values(done.folded, constant)
        for axis, size in enumerate(right.shape):
            first = np.take(right, [0], axis)
            if size == 1 or (right == first).all():
                continue
            for other in (first, np.concatenate([right, right], axis)):
                wrong = done.copy()
                put(wrong, constant, other)
                assert none_holds(done.certificates(wrong)), (constant, other.shape)


# --- wrong graphs ------------------------------------------------------------------------------


def another_operator(done: Folded, wrong: ModelProto) -> None:
    done.node(wrong).op_type = "Abs"


def an_operator_between(done: Folded, wrong: ModelProto) -> None:
    """A Neg ahead of what the fold ends in."""
    for node in wrong.graph.node:
        if done.applied[0].output in node.output:
            node.output[0] = "ahead"
    wrong.graph.node.append(op("Neg", "ahead", done.applied[0].output))


def a_scale_between(done: Folded, wrong: ModelProto) -> None:
    an_operator_between(done, wrong)
    wrong.graph.initializer.append(tensor(np.float32([1.5]), "much"))
    wrong.graph.node[-1].CopyFrom(op("Mul", "ahead much", done.applied[0].output))


def a_shift_between(done: Folded, wrong: ModelProto) -> None:
    a_scale_between(done, wrong)
    wrong.graph.node[-1].op_type = "Add"


def no_bias(done: Folded, wrong: ModelProto) -> None:
    done.node(wrong).input[2] = ""


def no_weight(done: Folded, wrong: ModelProto) -> None:
    """The name stays, and nothing is stored under it."""
    lost = done.new()[0]
    for at, stored in enumerate(wrong.graph.initializer):
        if stored.name == lost:
            del wrong.graph.initializer[at]
            break
    wrong.graph.input.append(helper.make_tensor_value_info(lost, FLOAT, None))


def no_node(done: Folded, wrong: ModelProto) -> None:
    wrong.graph.node.remove(done.node(wrong))


def no_operators(done: Folded, wrong: ModelProto) -> None:
    del wrong.graph.node[:]


def nothing(done: Folded, wrong: ModelProto) -> None:
    wrong.Clear()


def another_output(done: Folded, wrong: ModelProto) -> None:
    for node in wrong.graph.node:
        if done.applied[0].output in node.output:
            node.output[0] = "elsewhere"


def a_cycle(done: Folded, wrong: ModelProto) -> None:
    another_output(done, wrong)
    wrong.graph.node.append(op("Identity", "round", done.applied[0].output))
    wrong.graph.node.append(op("Identity", done.applied[0].output, "round"))


def inputs_turned(done: Folded, wrong: ModelProto) -> None:
    node = done.node(wrong)
    node.input[0], node.input[1] = node.input[1], node.input[0]


def other_data(done: Folded, wrong: ModelProto) -> None:
    """It reads a tensor of the same shape and type."""
    node, stored = done.node(wrong), {tensor.name for tensor in wrong.graph.initializer}
    place = next(k for k, name in enumerate(node.input) if name and name not in stored)
    wrong.graph.node.append(op("Neg", node.input[place], "other"))
    node.input[place] = "other"


def renamed(wrong: ModelProto, old: str, new: str) -> None:
    for node in wrong.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


@pytest.mark.parametrize("behind", ["a linear operator", "a map that stands"])
def test_data_of_a_lost_name_are_seen(behind: str) -> None:
    """What was read has another name now, and the operator reads another original tensor."""
    last = conv("conv", "t", "c", (3, 3, 1, 1)), bn("bn", "c", "z", 3)
    if behind != "a linear operator":
        last = (const("Add", "t", "c", rand(3, 1, 1)), const("Add", "c", "z", rand(3, 1, 1)))
    done = folded(model(op("Relu", "x", "t"), op("Abs", "x", "u"), *last, op("Add", "z u", "y")))
    wrong = done.copy()
    (node,) = (n for n in wrong.graph.node if "t" in n.input)
    node.input[list(node.input).index("t")] = "u"
    renamed(wrong, "t", "elsewhere")
    changed = [replace(fold, source="u") if fold.source == "t" else fold for fold in done.applied]
    assert all(each.holds for each in done.certificates())
    assert none_holds(Folded(done.original, done.folded, tuple(changed)).certificates(wrong))


def test_another_output_of_a_split_is_seen() -> None:
    """All its outputs have new names, and each stands for one of the original."""
    sizes = tensor(np.int64([2, 2]), "sizes")
    halves = op("Split", "n sizes", "p q", name="split", axis=1)
    made = model(
        bn("bn", "x", "n", 4),
        halves,
        conv("one", "p", "a", (3, 2, 1, 1)),
        conv("two", "q", "b", (3, 2, 1, 1)),
        op("Add", "a b", "y"),
        x=(2, 4, 5, 5),
    )
    made.graph.initializer.append(sizes)
    done = folded(made)
    assert all(each.holds for each in done.certificates())
    wrong = done.copy()
    one, two = (n for n in wrong.graph.node if n.op_type == "Conv")
    two.input[0] = one.input[0]
    assert [each.into for each in done.certificates(wrong) if each.fails] == ["two"]


GRAPHS = (
    another_operator,
    an_operator_between,
    a_scale_between,
    a_shift_between,
    no_bias,
    no_weight,
    no_node,
    no_operators,
    nothing,
    another_output,
    a_cycle,
    inputs_turned,
    other_data,
)


def wrecks() -> Iterator[Any]:
    for name in CASES:
        for spoil in GRAPHS:
            # Some have no bias to drop, and a Mul or Add reads its operands in any order.
            if spoil is no_bias and name.startswith(("matmul", "standing", "split-scale-goes")):
                continue
            if spoil is inputs_turned and name.startswith("standing"):
                continue
            yield pytest.param(name, spoil, id=f"{name}-{spoil.__name__}")


@pytest.mark.parametrize("name, spoil", list(wrecks()))
def test_wrong_graph_is_seen(name: str, spoil: Callable[[Folded, ModelProto], None]) -> None:
    done = case(name)
    wrong = done.copy()
    spoil(done, wrong)
    found = done.certificates(wrong)
    assert len(found) == len(done.applied)
    assert none_holds(found)


@pytest.mark.parametrize(
    "name",
    list(CASES),
)
def test_operator_without_parameters_is_seen(name: str) -> None:
    done = case(name)
    wrong = done.copy()
    node = done.node(wrong)
    stored = {t.name for t in wrong.graph.initializer}
    kept = [i for i in node.input if i not in stored]
    del node.input[:]
    node.input.extend(kept[:1])
    assert none_holds(done.certificates(wrong))


@pytest.mark.parametrize("name", SPLIT + STANDING)
def test_dropped_operator_is_seen(name: str) -> None:
    """One of the operators that still stand is left out."""
    done = case(name)
    standing = [n.name for n in done.folded.graph.node if n.op_type in ("Mul", "Add")]
    for lost in standing:
        wrong = done.copy()
        node = next(n for n in wrong.graph.node if n.name == lost)
        data = next(i for i in node.input if i not in {t.name for t in wrong.graph.initializer})
        wrong.graph.node.remove(node)
        wrong.graph.node.append(op("Identity", data, node.output[0]))
        assert none_holds(done.certificates(wrong)), lost


@pytest.mark.parametrize("build", [branches, function])
def test_lost_subgraph_is_seen(build: Callable[[], ModelProto]) -> None:
    done = folded(build())
    wrong = done.copy()
    del wrong.functions[:]
    del wrong.graph.node[0].attribute[:]
    assert none_holds(done.certificates(wrong))


ATTRIBUTES = {
    "alpha": ("gemm-row-c", "alpha", 1.0),
    "beta": ("gemm-row-c", "beta", -2.0),
    "trans": ("gemm-no-c", "transB", 0),
    "strides": ("conv-square", "strides", [1, 1]),
    "pads": ("conv-grouped", "pads", [0, 0, 0, 0]),
    "dilations": ("conv-2d", "dilations", [2, 2]),
    "group": ("conv-depthwise", "group", 2),
    "transposed-group": ("transposed-grouped", "group", 2),
    "output-padding": ("transposed-2d", "output_padding", [0, 0]),
    "trans-of-the-data": ("gemm-scalar-c", "transA", 0),
    "alpha-of-a-new-gemm": ("matmul-gemm", "alpha", 0.5),
    "beta-of-a-new-gemm": ("matmul-gemm", "beta", 0.5),
    "trans-of-a-new-gemm": ("matmul-gemm-left", "transB", 1),
    "axis": ("layer-norm-two-axes", "axis", -1),
    "num-groups": ("group-norm", "num_groups", 4),
    "epsilon": ("group-norm", "epsilon", 0.2),
    "batch-norm-epsilon": ("batch-norm-mul-add", "epsilon", 0.5),
}


@pytest.mark.parametrize(
    "name, key, value",
    [pytest.param(*entry, id=text) for text, entry in ATTRIBUTES.items()],
)
def test_changed_attribute_is_seen(name: str, key: str, value: Any) -> None:
    done = case(name)
    wrong = done.copy()
    node = done.node(wrong)
    kept = [a for a in node.attribute if a.name != key]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(key, value)])
    assert none_holds(done.certificates(wrong))


@part_by_part
@pytest.mark.parametrize("statistic", ["mean", "var"])
def test_changed_statistics_of_an_absorbing_batch_norm_are_seen(statistic: str) -> None:
    done = case("batch-norm-mul-add")
    wrong = done.copy()
    put(wrong, f"bn.{statistic}", values(wrong, f"bn.{statistic}") * np.float32(1.01))
    assert none_holds(done.certificates(wrong))


def test_each_fold_is_judged_for_itself() -> None:
    done = folded(
        model(
            conv("one", "x", "a", (4, 3, 1, 1)),
            bn("bn1", "a", "b", 4),
            op("Relu", "b", "r"),
            conv("two", "r", "c", (5, 4, 1, 1)),
            bn("bn2", "c", "y", 5),
        )
    )
    for name, seen in (("one.w", [False, True]), ("two.b", [True, False])):
        constant = next(n for n in done.new() if n.startswith(name))
        wrong = done.copy()
        put(wrong, constant, nudged(values(wrong, constant), 0, 2))
        assert [c.holds for c in done.certificates(wrong)] == seen


# --- whatever the folded model is --------------------------------------------------------------


def mangled(done: Folded, rng: np.random.Generator) -> ModelProto:
    """The folded model after a few blind edits."""
    wrong = done.copy()
    graph = wrong.graph
    names = [n for node in graph.node for n in (*node.input, *node.output)] + ["", "nowhere"]
    for _ in range(rng.integers(1, 4)):
        edit = int(rng.integers(7))
        node = graph.node[rng.integers(len(graph.node))] if graph.node else NodeProto()
        if edit == 0 and node.input:
            node.input[rng.integers(len(node.input))] = str(rng.choice(names))
        elif edit == 1 and node.output:
            node.output[0] = str(rng.choice(names))
        elif edit == 2 and node.input:
            del node.input[rng.integers(len(node.input)) :]
        elif edit == 3:
            kinds = [
                "Add",
                "Mul",
                "Div",
                "Identity",
                "BatchNormalization",
                "Conv",
                "Gemm",
                "MatMul",
            ]
            node.op_type = str(rng.choice(kinds))
        elif edit == 4 and node.attribute:
            del node.attribute[rng.integers(len(node.attribute))]
        elif edit == 5 and graph.initializer:
            stored = graph.initializer[rng.integers(len(graph.initializer))]
            shape = tuple(rng.integers(1, 5, rng.integers(0, 5)))
            stored.CopyFrom(tensor(rng.normal(size=shape).astype(np.float32), stored.name))
        elif edit == 6 and graph.initializer:
            del graph.initializer[rng.integers(len(graph.initializer))]
    return wrong


@pytest.mark.parametrize(
    "name",
    list(CASES),
)
def test_no_folded_model_is_an_exception(name: str) -> None:
    done = case(name)
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(40):
        found = done.certificates(mangled(done, rng))
        assert len(found) == len(done.applied)
        held += all(c.holds for c in found)
    assert held < 20, "blind edits should be seen"


def test_certificate_is_valid_json() -> None:
    done = case("conv-2d")
    wrong = done.copy()
    another_operator(done, wrong)
    for certificate in (*done.certificates(), *done.certificates(wrong)):
        back = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
        assert back["holds"] == certificate.holds
        assert back["maps"] == ["bn"]
