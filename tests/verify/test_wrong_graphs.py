"""The certificate on folds whose graph is wrong: no operator, name or attribute may be another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..graphs import (
    FLOAT,
    bn,
    const,
    conv,
    model,
    op,
    rand,
    subgraph,
    tensor,
)
from .folds import (
    CASES,
    SPLIT,
    STANDING,
    Folded,
    branches,
    case,
    folded,
    function,
    none_holds,
    put,
)


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


def without_zeros(zeros: int = 1) -> ModelProto:
    """Two convolutions, the second of which takes the name of an output: nothing is left ahead."""
    first, second = (conv(name, "x", f"{name}_out", (4, 4, 1, 1)) for name in ("one", "two"))
    read, chain = "two_out", []
    for step in range(zeros):
        name = "q" if step == zeros - 1 else f"c{step}"
        chain.append(const("Add", read, name, np.float32([0])))
        read = name
    used = op("Relu", "two_out", "y"), op("Abs", "one_out", "p")
    return model(first, second, *chain, *used, x=(4, 4, 4, 4), y="y p q")


@pytest.mark.parametrize("zeros", [1, 2])
def test_a_tensor_may_take_the_name_of_an_output(zeros: int) -> None:
    done = folded(without_zeros(zeros))
    assert [node.op_type for node in done.folded.graph.node] == ["Conv", "Conv", "Relu", "Abs"]
    assert all(certificate.holds for certificate in done.certificates())


def test_two_tensors_may_take_names_of_outputs() -> None:
    """The one that the other one is computed from gets its name by the later operator."""
    zero = np.float32([0])
    chain = op("Abs", "x", "a"), op("Neg", "a", "b"), const("Add", "b", "q", zero)
    done = folded(model(*chain, const("Add", "a", "p", zero), op("Relu", "b", "y"), y="p q y"))
    assert [node.op_type for node in done.folded.graph.node] == ["Abs", "Neg", "Relu"]
    assert all(certificate.holds for certificate in done.certificates())


@pytest.mark.parametrize("what", ["weights", "numbers", "attribute", "operator", "data"])
def test_another_tensor_under_the_name_of_an_output_is_seen(what: str) -> None:
    done = folded(without_zeros())
    wrong = done.copy()
    node = next(node for node in wrong.graph.node if "q" in node.output)
    if what == "weights":
        node.input[1] = next(n.input[1] for n in wrong.graph.node if n.name == "one")
    elif what == "attribute":
        node.attribute.append(helper.make_attribute("group", 1))
    elif what == "operator":
        node.domain = "my"
    elif what == "numbers":
        stored = next(t for t in wrong.graph.initializer if t.name == node.input[1])
        put(wrong, stored.name, 2 * numpy_helper.to_array(stored))
    else:
        node.input[0] = "one_out"
    assert none_holds(done.certificates(wrong))


def chosen(names: str, fold: bool) -> ModelProto:
    """Two Ifs alike but for their names and bodies; the first takes the name of an output."""

    def body(k: int) -> GraphProto:
        other = op("Abs" if k < 2 else "Neg", f"t{k}", "b")
        last = bn(f"bn{k}", f"t{k}", "b", 4) if fold else other
        return subgraph(conv(f"c{k}", "x", f"t{k}", (4, 4, 1, 1)), last, y="b")

    ifs = [
        op("If", "cond", f"i{k}", then_branch=body(2 * k), else_branch=body(2 * k + 1))
        for k in range(2)
    ]
    for node, name in zip(ifs, names.split(","), strict=True):
        node.name = name
    zero = const("Add", "i0", "q", np.float32([0]))
    last = conv("conv", "i0", "c", (4, 4, 1, 1)), bn("bn", "c", "z", 4)
    others = op("Relu", "i0", "y"), op("Abs", "i1", "p")
    made = model(*ifs, zero, *others, *last, x=(4, 4, 4, 4), y="y p q z")
    made.graph.input.append(helper.make_tensor_value_info("cond", TensorProto.BOOL, ()))
    return made


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("names", ["one,two", ","])
def test_an_operator_with_bodies_may_take_the_name_of_an_output(names: str, fold: bool) -> None:
    """The path of its bodies has that name, if it has none of its own."""
    done = folded(chosen(names, fold))
    assert "q" in done.folded.graph.node[0].output
    found = done.certificates()
    assert len(found) > 1 and all(certificate.holds for certificate in found), found
    wrong = done.copy()
    (first, second) = (n for n in wrong.graph.node if n.op_type == "If")
    first.output[0], second.output[0] = second.output[0], first.output[0]
    assert not all(certificate.holds for certificate in done.certificates(wrong))


def equals() -> ModelProto:
    two, three = np.float32([2]), np.float32([3])
    values = {"e1": two, "e2": two, "f1": three, "f2": three}
    maps = [const("Mul", "r", name, value) for name, value in values.items()]
    reads = [op("Tanh", "e1", "a"), op("Tanh", "e2", "b")]
    reads += [op("Abs", "f1", "c"), op("Abs", "f2", "d")]
    return model(op("Relu", "x", "r"), *maps, *reads, y="a b c d")


@pytest.mark.parametrize("what", ["another tensor", "another operator", "one step less"])
def test_readers_of_equal_maps_are_looked_at_in_the_folded_graph(what: str) -> None:
    done = folded(equals())
    assert [fold.law for fold in done.applied] == ["equal", "equal"]
    assert all(certificate.holds for certificate in done.certificates())
    wrong, applied = done.copy(), done.applied
    node = next(node for node in wrong.graph.node if "b" in node.output)
    if what == "another tensor":
        node.input[0] = "f1"
    elif what == "another operator":
        node.op_type = "Sigmoid"
    else:
        applied = applied[:-1]
    assert none_holds(Folded(done.original, done.folded, applied).certificates(wrong))


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
