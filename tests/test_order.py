"""Nodes out of order, as some converters write them: read in order, at every level of a model.

The oracle is onnxruntime, which runs such files, and the same model with its nodes in order.
"""

from __future__ import annotations

import random
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold._errors import UsageError
from bnfold._onnx.read.order import in_order

from .cli.command import bnfold as run_command
from .functions import block, call, params
from .graphs import (
    bn,
    const,
    constants,
    conv,
    counts,
    feeds,
    graphs,
    model,
    op,
    run,
    session,
    subgraph,
)


def shuffled(made: ModelProto, seed: int) -> ModelProto:
    """A copy with the nodes of every graph in some other order."""
    mixed = ModelProto()
    mixed.CopyFrom(made)
    for holder in reversed([holder for _, holder in graphs(mixed)]):  # what is inside comes first
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in holder.node]
        backward = nodes[::-1]
        random.Random(seed).shuffle(nodes)
        del holder.node[:]
        holder.node.extend(nodes if seed else backward)
    return mixed


def in_a_row():
    """Maps that ask for ranks, which inference has to find, and a Constant node."""
    return model(
        conv("a", "x", "c1", (4, 3, 3, 3)),
        bn("n1", "c1", "b1", 4),
        op("Relu", "b1", "r1"),
        op("Flatten", "r1", "f"),
        op("Constant", "", "k", value=helper.make_tensor("", TensorProto.FLOAT, [1], [1.5])),
        op("Mul", "f k", "m"),
        (op("Gemm", "m w", "g"), {"w": np.ones((4 * 36, 5), np.float32)}),
        const("Add", "g", "y", np.arange(5, dtype=np.float32)),
    )


def in_branches():
    """Bodies that capture what is written around them, from two levels up as well."""
    inner = subgraph(op("Relu", "c1", "r"), bn("n3", "r", "i", 4), y="i")
    other = subgraph(op("Neg", "c2", "n"), op("Neg", "n", "o"), y="o")
    then = subgraph(
        conv("d", "r1", "c2", (4, 4, 1, 1)),
        bn("n2", "c2", "b2", 4),
        op("If", "cond", "q", name="inner", then_branch=inner, else_branch=other),
        op("Add", "b2 q", "t"),
        y="t",
    )
    made = model(
        conv("a", "x", "c1", (4, 3, 3, 3)),
        bn("n1", "c1", "b1", 4),
        op("Relu", "b1", "r1"),
        op(
            "If",
            "cond",
            "z",
            name="outer",
            then_branch=then,
            else_branch=subgraph(op("Abs", "r1", "e"), y="e"),
        ),
        op("Identity", "z", "y"),
    )
    made.graph.input.append(helper.make_tensor_value_info("cond", TensorProto.BOOL, ()))
    return made


def in_functions():
    """Two calls of a function, the later one written first."""
    return model(
        call("a", "x", "h"),
        call("b", "h", "y"),
        weights=params("a", 3, 4) | params("b", 4, 4),
        functions=[block()],
        domains={"my": 1},
    )


MODELS = {"row": in_a_row, "branches": in_branches, "functions": in_functions}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_any_order_folds_as_the_right_one(name, seed):
    """The same plan, the same weights, and what onnxruntime makes of the file as it is."""
    made = MODELS[name]()
    mixed = shuffled(made, seed)
    before = mixed.SerializeToString()
    after, wanted = bnfold.fold(mixed), bnfold.fold(made)
    assert mixed.SerializeToString() == before
    plans = bnfold.plan(mixed), bnfold.plan(made)
    assert {f.nodes for f in plans[0].folds} == {f.nodes for f in plans[1].folds}
    assert {(k.node, k.code) for k in plans[0].kept} == {(k.node, k.code) for k in plans[1].kept}
    assert counts(after) == counts(wanted)
    ours, theirs = constants(after), constants(wanted)
    assert ours.keys() == theirs.keys()
    assert all((ours[k] == theirs[k]).all() for k in ours)
    given = feeds(made)
    runs = mixed if name == "row" else made  # onnxruntime asks bodies and functions for the order
    for one, other in zip(run(runs, given), run(after, given), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    onnx.checker.check_model(after)  # which asks for the order


def test_what_is_in_order_stays_so():
    """Order is a choice where nodes are independent: the file's."""
    made = in_branches()
    assert in_order(made) is made
    assert [n.output[0] for n in in_order(shuffled(made, 0)).graph.node][-1] == "y"


def test_a_name_that_a_body_has_for_itself_is_none_of_the_graph_around():
    """The body's ``r1`` is its own: not written by the node that comes later."""
    body = subgraph(op("Relu", "x", "r1"), op("Neg", "r1", "t"), y="t")
    other = subgraph(op("Relu", "x", "e"), y="e")
    made = model(
        op("If", "cond", "z", then_branch=body, else_branch=other),
        op("Abs", "z", "r1"),
        op("Neg", "r1", "y"),
        weights={"cond": np.array(True)},
    )
    assert in_order(made) is made


def test_nodes_of_a_function_come_in_order():
    nodes = [op("Neg", "t", "y"), op("Abs", "a", "t")]
    function = helper.make_function("my", "F", ["a"], ["y"], nodes, [helper.make_opsetid("", 17)])
    made = model(helper.make_node("F", ["x"], ["y"], domain="my"), functions=[function])
    assert [node.op_type for node in in_order(made).functions[0].node] == ["Abs", "Neg"]


UNDEFINED = {
    "an operator": (model(op("Add", "x lost", "y")), "y_add reads"),
    "an operator that nobody reads": (model(op("Abs", "x", "y"), op("Abs", "lost", "z")), "reads"),
    "an output": (model(op("Abs", "x", "y"), y="lost"), "asks for"),
    "a branch": (
        model(
            op(
                "If",
                "c",
                "y",
                then_branch=subgraph(op("Add", "x lost", "y")),
                else_branch=subgraph(op("Abs", "x", "y")),
            ),
            weights={"c": np.array(True)},
        ),
        "asks for",
    ),
    "a branch's output": (
        model(
            op(
                "If",
                "c",
                "y",
                then_branch=subgraph(op("Abs", "x", "z"), y="lost"),
                else_branch=subgraph(op("Abs", "x", "y")),
            ),
            weights={"c": np.array(True)},
        ),
        "asks for",
    ),
}


@pytest.mark.parametrize("where", UNDEFINED)
def test_what_nothing_writes_cannot_be_read(where):
    """No runtime loads it, and whatever is read there might be anything."""
    made, who = UNDEFINED[where]
    with pytest.raises(UsageError, match=rf"{who} the tensor 'lost', which is no input"):
        in_order(made)
    with pytest.raises(Exception, match="lost"):
        session(made)


@pytest.mark.parametrize("output", ["y", "lost"])
def test_what_nothing_in_a_function_writes(output):
    nodes = [op("Add", "a lost" if output == "y" else "a a", "y")]
    function = helper.make_function(
        "my", "F", ["a"], [output], nodes, [helper.make_opsetid("", 17)]
    )
    made = model(helper.make_node("F", ["x"], ["y"], domain="my"), functions=[function])
    with pytest.raises(UsageError, match="the tensor 'lost', which is no input"):
        in_order(made)


def branched(name, *ahead, behind=(), y="y", result="z", reads="x", opset=13):
    """An If whose branches write a name, and hand it on; both have a norm behind a Conv."""
    then, other = (
        subgraph(
            conv(f"{tag}.conv", reads, f"{tag}.c", (3, 3, 1, 1)),
            bn(f"{tag}.bn", f"{tag}.c", name, 3),
            y=name,
        )
        for tag in ("then", "else")
    )
    made = model(
        *ahead,
        op("If", "cond", result, name="choice", then_branch=then, else_branch=other),
        *behind,
        y=y,
        opset=opset,
    )
    made.graph.input.append(helper.make_tensor_value_info("cond", TensorProto.BOOL, ()))
    return made


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "name, result, ahead, behind",
    [
        ("y", "y", [], []),
        ("y", "z", [], [op("Relu", "z", "y")]),
        ("r", "z", [], [op("Relu", "z", "r"), op("Neg", "r", "y")]),
        ("r", "z", [op("Abs", "x", "t")], [op("Add", "z t", "r"), op("Neg", "r", "y")]),
    ],
)
def test_a_body_may_put_out_a_name_that_comes_behind_it(name, result, ahead, behind, shuffle):
    """That of its own node, and of nodes that read it. They were said to be a cycle."""
    made = branched(name, *ahead, behind=behind, result=result)
    mixed = onnx.ModelProto.FromString(made.SerializeToString())
    if shuffle:  # onnxruntime runs no bodies that are out of order
        nodes = list(made.graph.node)[::-1]
        del mixed.graph.node[:]
        mixed.graph.node.extend(nodes)
    after = bnfold.fold(mixed)
    assert "BatchNormalization" not in counts(after)
    for choice in (True, False):
        data = {**feeds(made), "cond": np.array(choice)}
        np.testing.assert_allclose(run(after, data)[0], run(mixed, data)[0], rtol=1e-4, atol=1e-4)
    assert bnfold.verify(mixed, after).status == "pass"


@pytest.mark.parametrize("reads", ["x", "r", "k"])
@pytest.mark.parametrize("kind", ["written", "stored", "given", "two levels up"])
def test_a_body_may_not_write_a_name_that_it_sees(kind, reads, tmp_path):
    """onnxruntime refuses it. The line says where; it told of a cycle through one node."""
    ahead = [op("Relu", "x", "r"), const("Mul", "r", "s", np.ones((3, 1, 1), np.float32))]
    name = {"written": "r", "stored": "s_mul.k", "given": "x", "two levels up": "r"}[kind]
    reads = {"x": "x", "r": "r", "k": name}[reads]
    made = branched(name, *ahead, behind=[op("Add", "z s", "y")], reads=reads)
    place = "else_branch of choice"
    if kind == "two levels up":
        inner = [node for node in made.graph.node if node.name == "choice"]
        outer = subgraph(*inner, y="z")
        same = subgraph(op("Identity", "x", "q"), y="q")
        made.graph.node.remove(inner[0])
        top = op("If", "cond", "z", name="top", then_branch=outer, else_branch=same)
        made.graph.node.insert(2, top)
    with pytest.raises(Exception, match=r"INVALID_GRAPH|acyclic|invalid model"):
        run(made, {**feeds(made), "cond": np.array(True)})
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    ended = run_command(path, "--check")
    assert ended.code == 2 and len(ended.err.splitlines()) == 1
    words = f"else.bn in {place} writes the tensor {name!r}, but a graph around it has"
    assert f"error: {path}: {words}" in ended.err


@pytest.mark.parametrize("level", ["main", "body", "function"])
def test_a_cycle_is_refused_with_one_line(level, tmp_path):
    """By whatever reads a file; the line names the nodes of the cycle, and no other."""
    made = {"main": in_a_row, "body": in_branches, "function": in_functions}[level]()
    first, second = [h.node for _, h in graphs(made) if h.node[0].op_type == "Conv"][-1][:2]
    first.input[0] = second.output[0]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(made.SerializeToString())
    good = tmp_path / "good.onnx"
    onnx.save(in_a_row(), good)
    for arguments in ([broken], ["verify", broken, good], ["verify", good, broken]):
        done = run_command(*arguments)
        assert done.code == 2
        assert done.err.strip().count("\n") == 0
        assert f"{broken}: the graph has a cycle through {first.name}, {second.name}" in done.err
    with pytest.raises(bnfold.BnfoldError, match=f"cycle through {first.name}, {second.name}$"):
        bnfold.plan(made)


def test_the_command_folds_proves_and_writes_in_order(tmp_path):
    """Its weights can be varied, and the errors planted in them show."""
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(shuffled(in_a_row(), 0), source)
    done = run_command(source, "-o", target)
    assert done.code == 0, done.out + done.err
    assert "varied" not in done.out
    onnx.checker.check_model(target)
    again = run_command("verify", source, target)
    assert again.code == 0
    assert "varied" not in again.out


def test_what_does_not_fold_comes_out_as_it_was(tmp_path):
    made = model(op("Relu", "x", "a"), op("Tanh", "a", "b"), op("Relu", "b", "y"))
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(shuffled(made, 0).SerializeToString())
    assert run_command(source, "-o", target).code == 0
    assert target.read_bytes() == source.read_bytes()


def broken(kind):
    """A model with a name that two tensors of one graph have."""
    made = model(conv("a", "x", "c", (4, 3, 3, 3)), bn("n", "c", "b", 4), op("Relu", "b", "y"))
    if kind == "two operators":
        made.graph.node.append(op("Neg", "c", "b"))
    elif kind == "one operator":
        made.graph.node.append(op("Split", "c", "p p", axis=1))
    elif kind == "an input":
        made.graph.node.append(op("Neg", "c", "x"))
    elif kind == "an initializer":
        made.graph.node.append(op("Neg", "c", made.graph.initializer[0].name))
    elif kind == "initializers":
        made.graph.initializer.append(made.graph.initializer[0])
    elif kind == "inputs":
        made.graph.input.append(made.graph.input[0])
    else:
        body = subgraph(op("Neg", "c", "q"), op("Relu", "c", "q"), y="q")
        other = subgraph(op("Neg", "c", "q"), y="q")
        made.graph.initializer.append(helper.make_tensor("cond", TensorProto.BOOL, [], [True]))
        made.graph.node.append(op("If", "cond", "z", then_branch=body, else_branch=other))
    return made


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("two operators", "two operators write the tensor 'b'"),
        ("one operator", "two operators write the tensor 'p'"),
        ("an input", "writes the tensor 'x', which is an input or a stored tensor"),
        ("an initializer", "which is an input or a stored tensor"),
        ("initializers", "two stored tensors named"),
        ("inputs", "two inputs named 'x'"),
        ("a body", "two operators write the tensor 'q'"),
    ],
)
def test_a_name_of_two_tensors_is_refused(kind, words, tmp_path):
    """Nobody can tell which is meant. Planning went round for ever on the first of them."""
    made = broken(kind)
    with pytest.raises(bnfold.UsageError, match=words):
        bnfold.plan(made)
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    ended = run_command(path, "--check")
    assert ended.code == 2
    assert f"error: {path}: " in ended.err
    assert len(ended.err.splitlines()) == 1


def test_an_input_may_have_a_default():
    made = model(conv("a", "x", "c", (4, 3, 3, 3)), bn("n", "c", "y", 4))
    weight = made.graph.initializer[0]
    made.graph.input.append(
        helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
    )
    bnfold.plan(made)


class Counted(str):
    """A name that counts how often somebody looks for it."""

    __slots__ = ()
    looks = 0

    def __hash__(self):
        Counted.looks += 1
        return super().__hash__()


def test_ten_times_the_nodes_are_ten_times_the_work():
    """Each node looks for its own names, and not through those of all nodes before."""

    def looks(count: int) -> int:
        names = [Counted(f"t{n}") for n in range(count + 1)]
        nodes = [
            SimpleNamespace(input=[one], output=[other], attribute=[])
            for one, other in pairwise(names)
        ]
        stored = {"input": [SimpleNamespace(name=names[0])], "output": [], "initializer": []}
        stored["sparse_initializer"] = []
        made = SimpleNamespace(graph=SimpleNamespace(name="", node=nodes, **stored), functions=[])
        Counted.looks = 0
        assert in_order(made) is made
        return Counted.looks

    assert looks(100) >= 200
    assert looks(1000) <= 10 * looks(100) + 10
