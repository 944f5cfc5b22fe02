"""Calls of local functions: which are inlined, what they become, and who checks it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import bnfold
from bnfold._onnx.read import inlining
from bnfold._proof import inlined_calls
from bnfold._proof.certificate import certify

from .cli.command import bnfold as command
from .functions import (
    BLOCK,
    DOMAIN,
    block,
    call,
    constant,
    convolving,
    function,
    params,
    refers,
    two_calls,
)
from .graphs import (
    counts,
    done,
    fold,
    folds,
    label,
    model,
    op,
    rand,
    tensor,
)


def kept_by(made):
    return {kept.node: kept for kept in bnfold.plan(made).kept}


def inlined(made):
    """The certificate of the calls that a fold puts their bodies in the place of."""
    once = done(made)
    (found,) = (c for c in certify(made, once.folded, once.applied) if c.law == "inline")
    return found


def test_only_the_calls_in_which_something_folds_are_inlined():
    """One call gives its weights as constants, the other computes them."""
    computed = [op("Sigmoid", "v0", "v1"), op("Block", "h w s t m v1", "y", domain="my")]
    own = params("a", 3, 3)
    shapes = {"x": (2, 3, 8, 8), "v0": (3,)}
    m = model(
        call("a", "x", "h"),
        *computed,
        x=shapes,
        functions=[block()],
        domains=DOMAIN,
        weights=own | dict(zip("wstm", [rand(3, 3, 3, 3), rand(3), rand(3), rand(3)])),
    )
    after = fold(m)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Sigmoid", "Block"]
    assert after.functions[0] == m.functions[0]
    assert kept_by(m)["bn"].graph == "function my::Block"


def test_what_folds_for_all_calls_stays_in_the_function():
    """A map of its own constants folds once; only what a call gives takes that call apart."""
    body = convolving(
        "k",
        op("Mul", "c k", "d", name="mul"),
        op("Relu", "d", "e"),
        op("Conv", "e u", "f", name="second"),
        op("BatchNormalization", "f s t m v", "y", name="bn"),
    )
    block = function("Block", "x u s t m v", "y", body)
    plain = model(
        op("Block", "x u s t m v", "h", domain="my"),
        op("Block", "h u s t m v", "y", domain="my"),
        x={"x": (2, 3, 9, 9), "u": (3, 3, 1, 1), **dict.fromkeys("stmv", (3,))},
        functions=[block],
        domains=DOMAIN,
    )
    after = fold(plain, runtime=False)
    assert (len(after.functions), counts(after)["Block"]) == (1, 2)
    assert "Mul" not in counts(after)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_weights_that_pass_through_functions(depth):
    """Each function hands what it is given on to the next one, in another order."""
    layers = [block("Block0")]
    for number in range(1, depth + 1):
        inner = op(f"Block{number - 1}", "a w s t m v", "b", domain="my", name="inner")
        body = [op("Relu", "x", "a", name="relu"), inner, op("Relu", "b", "y", name="last")]
        layers.append(function(f"Block{number}", "v m t s w x", "y", body))
    weights = params("a", 3, 4) | params("b", 4, 5)
    nodes = [
        op(
            f"Block{depth}",
            " ".join([*(f"{p}.{n}" for n in "vmtsw"), x]),
            y,
            domain="my",
        )
        for p, x, y in (("a", "x", "h"), ("b", "h", "y"))
    ]
    for layer in layers[2:]:  # the functions but the innermost one take weights in this order
        layer.node[1].input[:] = ["v", "m", "t", "s", "w", "a"]
    m = model(*nodes, functions=layers, domains=DOMAIN, weights=weights)
    after = fold(m)
    assert "BatchNormalization" not in counts(after)
    assert not after.functions
    assert bnfold.plan(m).folds[0].graph.startswith(f"h_block{depth}/")


def test_calls_in_bodies_of_an_if():
    def branch(prefix):
        body = call(prefix, "x", f"{prefix}.y")
        out = helper.make_tensor_value_info(f"{prefix}.y", 1, None)
        return helper.make_graph([body], prefix, [], [out])

    weights = params("a", 3, 4) | params("b", 3, 4) | {"cond": np.array(True)}
    choice = op("If", "cond", "y", then_branch=branch("a"), else_branch=branch("b"), name="if")
    m = model(choice, functions=[block()], domains=DOMAIN)
    m.graph.initializer.extend(tensor(v, k) for k, v in weights.items() if k != "cond")
    m.graph.input.append(helper.make_tensor_value_info("cond", 9, []))
    for cond in (True, False):
        after = fold(m, {"x": rand(2, 3, 8, 8), "cond": np.array(cond)})
    assert "BatchNormalization" not in counts(after)
    places = {f.graph for f in bnfold.plan(m).folds}
    assert places == {
        "if.then_branch/call_a.y: function my::Block",
        "if.else_branch/call_b.y: function my::Block",
    }


def test_a_body_of_an_if_in_a_function_keeps_its_own_names():
    """A branch has a tensor with a name of the graph around, and reads others from there."""
    then = helper.make_graph(
        [op("Conv", "x w", "h", name="conv"), op("BatchNormalization", "h s t m v", "y")],
        "then",
        [],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    other = helper.make_graph(
        [op("Conv", "x w", "h")], "else", [], [helper.make_tensor_value_info("h", 1, None)]
    )
    body = [op("If", "cond", "y1", then_branch=then, else_branch=other)]
    m = model(
        op("Block", "x cond a.w a.s a.t a.m a.v", "h", domain="my", name="one"),
        op("Relu", "h", "w"),
        op("Block", "w cond b.w b.s b.t b.m b.v", "y", domain="my", name="two"),
        functions=[function("Block", "x cond w s t m v", "y1", body)],
        domains=DOMAIN,
        weights=params("a", 3, 3) | params("b", 3, 3),
    )
    m.graph.input.append(helper.make_tensor_value_info("cond", 9, []))
    for cond in (True, False):
        after = fold(m, {"x": rand(2, 3, 8, 8), "cond": np.array(cond)})
    assert "BatchNormalization" not in counts(after)


@pytest.mark.parametrize("rest", [["r"], []], ids=str)
def test_absent_inputs_and_outputs(rest):
    """A bias that a call leaves out, and an output that nobody takes.

    onnxruntime 1.31 does not load a call with fewer outputs than its function has.
    """
    body = [
        op("Conv", "x w b", "c", name="conv"),
        op("Mul", "c k", "y", name="mul"),
        op("Relu", "x", "more"),
    ]
    m = model(
        helper.make_node("Block", ["x", "w", "", "k"], ["h", "g"], "one", domain="my"),
        helper.make_node("Block", ["h", "w", "b", "k"], ["y", *rest], "two", domain="my"),
        functions=[function("Block", "x w b k", "y more", body)],
        domains=DOMAIN,
        weights={"w": rand(3, 3, 1, 1), "b": rand(3), "k": rand(3, 1, 1)},
        y="y g",
    )
    after = folds(m, Conv=2, Relu=2, runtime=bool(rest))
    assert {name for node in after.graph.node for name in node.output} >= {"h", "g", "y"}


def test_a_function_that_puts_out_what_it_is_given_is_left():
    """No runtime takes it (seen in onnxruntime 1.31)."""
    body = [op("Conv", "x w", "c", name="conv"), op("Mul", "c k", "y", name="mul")]
    m = model(
        op("Block", "x w k", "y z", domain="my"),
        functions=[function("Block", "x w k", "y k", body)],
        domains=DOMAIN,
        weights={"w": rand(3, 3, 1, 1), "k": rand(3, 1, 1)},
        y="y z",
    )
    assert bnfold.fold(m).SerializeToString() == m.SerializeToString()


def test_names_that_inlining_would_give_are_taken():
    m = model(
        op("Relu", "x", "call_h/c", name="call_h/conv"),
        call("a", "call_h/c", "h"),
        functions=[block()],
        domains=DOMAIN,
        weights=params("a", 3, 4),
        y="h",
    )
    after = folds(m, Relu=1, Conv=1)
    assert len({node.name for node in after.graph.node}) == 2


def test_attributes_of_each_call_and_defaults():
    """Strides by the call or, where it gives none, by the function's default, or ONNX's."""
    node = op("Conv", "x w", "c", name="conv")
    node.attribute.append(refers("strides", [1, 1], "steps"))
    node.attribute.append(refers("pads", [1, 1, 1, 1], "border"))
    body = [node, op("BatchNormalization", "c s t m v", "y", name="bn")]
    made = function(
        "Block",
        BLOCK,
        "y",
        body,
        ["border"],
        attribute_protos=[helper.make_attribute("steps", [2, 2])],
    )
    m = model(
        op("Block", "x a.w a.s a.t a.m a.v", "h", domain="my", border=[1, 1, 1, 1]),
        op("Block", "h b.w b.s b.t b.m b.v", "y", domain="my", steps=[1, 1]),
        functions=[made],
        domains=DOMAIN,
        weights=params("a", 3, 4) | params("b", 4, 5),
    )
    after = folds(m, Conv=2)
    first, second = ({a.name: list(a.ints) for a in n.attribute} for n in after.graph.node)
    assert first == {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    assert second == {"strides": [1, 1]}


def test_a_function_of_another_opset():
    """Relu is the same in both opsets, and BatchNormalization is not."""
    for opset, folding in ((16, True), (13, False)):
        m = model(
            call("a", "x", "y"),
            functions=[block(opset=opset)],
            domains=DOMAIN,
            weights=params("a", 3, 4),
        )
        assert bool(bnfold.plan(m).folds) == folding
        once = done(m)
        assert all(one.holds for one in certify(m, once.folded, once.applied))
        if not folding:
            kept = kept_by(m)["bn"]
            assert kept.graph == "function my::Block"
            assert "onnx.inliner" in kept.advice


def test_the_model_knows_the_domains_of_inlined_operators_and_no_more():
    """A function may import what no operator of it is of, and what the model has not imported."""
    made = block()
    made.opset_import.append(helper.make_opsetid("unused", 7))
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made.node[-1].output[0] = "before"
    made.node.append(op("Gelu", "before", "y", domain="com.microsoft"))
    m = model(call("a", "x", "y"), functions=[made], domains=DOMAIN, weights=params("a", 3, 4))
    after = bnfold.fold(m)
    assert counts(after) == {"Conv": 1, "Gelu": 1}
    assert {entry.domain for entry in after.opset_import} == {"", "my", "com.microsoft"}


def test_a_function_that_calls_itself_is_left():
    body = [
        op("Block", "x w s t m v", "c", domain="my"),
        op("BatchNormalization", "c s t m v", "y"),
    ]
    m = model(
        call("a", "x", "y"),
        functions=[function("Block", BLOCK, "y", body)],
        domains=DOMAIN,
        weights=params("a", 3, 3),
    )
    assert not bnfold.plan(m).folds


def test_functions_that_nobody_called_stay():
    idle = function("Idle", BLOCK, "y", [op("Inner", BLOCK, "y", domain="my")])
    m = model(
        call("a", "x", "y"),
        functions=[block(), idle, block("Inner")],
        domains=DOMAIN,
        weights=params("a", 3, 4),
    )
    after = folds(m, Conv=2, Inner=1, BatchNormalization=1)
    assert [f.name for f in after.functions] == ["Idle", "Inner"]


def test_a_map_that_stays_even_if_inlined_says_why():
    body = [constant("k", rand(3, 1, 1)), op("Mul", "x k", "y", name="mul")]
    m = model(
        op("Sigmoid", "x", "c", name="sigmoid"),
        op("Block", "c", "d", domain="my", name="call"),
        op("Sigmoid", "d", "y"),
        functions=[function("Block", "x", "y", body)],
        domains=DOMAIN,
    )
    assert fold(m).SerializeToString() == m.SerializeToString()
    kept = kept_by(m)["mul"]
    assert (kept.graph, kept.code) == ("function my::Block", "no-linear-operator")
    assert "sigmoid" in kept.message


def test_the_command_verifies_what_calls_have_become(tmp_path):
    m = two_calls(3, 4, 5)
    onnx.save(m, tmp_path / "m.onnx")
    run = command(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "-v")
    assert (run.code, run.err) == (0, "")
    assert "  bn → conv [call_h: function my::Block] (absorb behind Conv)" in run.lines
    assert "certificates: 3 of 3 hold" in run.lines
    assert command("verify", tmp_path / "m.onnx", tmp_path / "o.onnx").code == 0


@pytest.mark.parametrize("wrong", ["attribute", "order", "input", "constant"])
def test_the_certificate_sees_calls_that_were_inlined_wrongly(wrong, monkeypatch):
    right = inlining._Inliner._body

    def spoilt(self, function, node, here, infos):
        nodes = right(self, function, node, here, infos)
        if wrong == "attribute":
            nodes[-1].attribute[0].f = 0.02
        elif wrong == "constant":
            self._model.graph.initializer[0].raw_data = b"\0" * 4 * 81
        elif wrong == "order":
            node.input[1:3] = reversed(node.input[1:3])
            nodes[-1].input[1:3] = reversed(nodes[-1].input[1:3])
        else:
            nodes[0].input[0] = "x"
        return nodes

    monkeypatch.setattr(inlining._Inliner, "_body", spoilt)
    assert inlined(two_calls(3, 3, 3)).fails


def test_inlined_calls_that_cannot_be_checked_rest_on_their_weights(monkeypatch):
    """Errors are planted in the calls, so that the comparison can stand for the certificate."""

    def broken(model):
        raise RuntimeError("broken")

    monkeypatch.setattr(inlined_calls, "inline_local_functions", broken)
    m = two_calls(3, 3, 3)
    found = inlined(m)
    assert found.unchecked is not None
    assert found.layers == {label(node) for node in m.graph.node}
