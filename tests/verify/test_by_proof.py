"""A proof within a verdict: what it settles where a run shows nothing, and what it never settles.

Each model here hides its layers from a run. The oracle for "wrong" is how it was made: a number of
a layer that is read was changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold._judge import by_proof
from bnfold._judge.verdict import Cause, EndToEnd, OutputCheck
from bnfold._relation import proof as proofs

from ..graphs import bn, const, conv, model, op, reseed, subgraph

PROVES = True
INT = TensorProto.INT64
DOMAINS = {"test.ops": 1}


@pytest.fixture(autouse=True)
def _seed() -> None:
    reseed(5)


def changed(made: ModelProto, name: str, factor: float = 1.0001, channel: int = 0) -> ModelProto:
    """The same model with one channel of a stored weight off."""
    made = copy.deepcopy(made)
    (stored,) = (t for t in made.graph.initializer if t.name == name)
    values = numpy_helper.to_array(stored).copy()
    values[channel] *= values.dtype.type(factor)
    stored.CopyFrom(numpy_helper.from_array(values, name))
    return made


def layer(*ending: Any, x: Any = (1, 3, 8, 8), **more: Any) -> ModelProto:
    """Conv → BatchNormalization → what hides it."""
    pieces = (conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "t", 4))
    return model(*pieces, *ending, x=x, **more)


def chosen() -> ModelProto:
    made = layer(op("ArgMax", "t", "y", axis=1))
    made.graph.output[0].type.tensor_type.elem_type = INT
    return made


def saturated() -> ModelProto:
    return layer(const("Add", "t", "u", np.float32(60)), op("Sigmoid", "u", "y"))


def never_taken() -> ModelProto:
    branches = (
        subgraph(
            conv("inner", "x", "i", (4, 3, 3, 3)),
            bn("inner_bn", "i", "j", 4),
            y="j",
        ),
        subgraph(op("Relu", "t", "k"), y="k"),
    )
    return layer(
        op("ReduceMax", "x", "m", keepdims=0),
        const("Greater", "m", "p", np.float32(1e30)),
        op("If", "p", "y", then_branch=branches[0], else_branch=branches[1]),
    )


def unknown(x: str, y: str) -> onnx.NodeProto:
    return op("Doubled", x, y, name=f"{y}_plugin", domain="test.ops")


def ahead_of_a_plugin() -> ModelProto:
    """What the plugin reads is saturated, so that a cut there shows nothing."""
    return layer(
        const("Mul", "t", "m", np.float32(1e-12)),
        const("Add", "m", "n", np.float32(1)),
        unknown("n", "y"),
        domains=DOMAINS,
    )


def random() -> ModelProto:
    return layer(op("Sigmoid", "t", "u"), op("Bernoulli", "u", "y"))


def nowhere() -> ModelProto:
    """No runtime has this operator's attribute."""
    return layer(op("Relu", "t", "y", name="mystery", strength=2))


HIDING: dict[str, Callable[[], ModelProto]] = {
    "ArgMax": chosen,
    "Sigmoid": saturated,
    "branch": never_taken,
    "plugin": ahead_of_a_plugin,
    "random": random,
    "no runtime": nowhere,
}


def weight_of(folded: ModelProto, conv_name: str = "conv") -> str:
    nodes = [*folded.graph.node]
    for node in folded.graph.node:
        nodes += [inner for a in node.attribute if a.HasField("g") for inner in a.g.node]
    return next(node.input[1] for node in nodes if node.name == conv_name)


@pytest.mark.parametrize("kind", HIDING)
def test_a_right_fold_passes_by_its_proof(kind: str) -> None:
    made = HIDING[kind]()
    result = bnfold.verify(made, bnfold.fold(made))
    assert result.status == "pass", result
    assert result.proof is not None and result.proof.status == "proved"
    assert [each.name for each in result.proof.outputs] == ["y"]
    assert result.power == ()  # nothing has to be planted


@pytest.mark.parametrize("kind", HIDING)
def test_a_wrong_fold_there_fails_with_its_place(kind: str) -> None:
    """Or it is left open with its place, where what reads it may make the same of other numbers."""
    made = HIDING[kind]()
    folded = bnfold.fold(made)
    result = bnfold.verify(made, changed(folded, weight_of(folded)))
    is_sure = kind in ("Sigmoid", "random", "no runtime")
    assert result.status == "fail" if is_sure else result.status != "pass", result
    assert result.proof is not None and result.proof.at == "conv", result.proof
    assert result.proof.status == "refuted" if is_sure else result.proof.status == "not proved"
    assert "channel 0" in result.proof.why
    assert f"{result.proof.status} at conv: " in str(result)


def test_a_wrong_fold_in_a_branch_that_no_input_takes() -> None:
    made = never_taken()
    folded = bnfold.fold(made)
    wrong = copy.deepcopy(folded)
    (branch,) = (node for node in wrong.graph.node if node.op_type == "If")
    name = weight_of(folded, "inner")
    inner = [t for a in branch.attribute for t in a.g.initializer if t.name == name]
    (stored,) = inner or [t for t in wrong.graph.initializer if t.name == name]
    values = numpy_helper.to_array(stored) * np.float32(1.001)
    stored.CopyFrom(numpy_helper.from_array(values, name))
    result = bnfold.verify(made, wrong)
    assert result.status != "pass", result
    assert result.proof is not None and result.proof.at.startswith("inner"), result.proof


def test_a_dead_channel() -> None:
    """Behind it comes nothing, and its weights may be what they want; a live one may not."""
    made = model(
        conv("a", "x", "c", (4, 3, 1, 1)),
        op("Relu", "c", "r"),
        conv("b", "r", "y", (2, 4, 1, 1)),
    )
    dead = copy.deepcopy(made)
    for name, place in (("b.w", np.s_[:, 1]),):
        (stored,) = (t for t in dead.graph.initializer if t.name == name)
        values = numpy_helper.to_array(stored).copy()
        values[place] = 0
        stored.CopyFrom(numpy_helper.from_array(values, name))
    assert bnfold.verify(dead, dead).status == "pass"
    assert bnfold.verify(dead, changed(dead, "a.w", 3, channel=1)).status != "fail"
    result = bnfold.verify(dead, changed(dead, "a.w", 1.0001, channel=2))
    assert (result.status, result.proof and result.proof.at) == ("fail", "a")


# --- what a proof does not see ------------------------------------------------------------------


def scaled_inside(by: float) -> tuple[ModelProto, ModelProto]:
    """Conv → Relu → Conv, and the same with a power of two moved from the second to the first."""
    made = model(
        conv("a", "x", "c", (4, 3, 1, 1)),
        op("Relu", "c", "r"),
        conv("b", "r", "y", (2, 4, 1, 1)),
    )
    other = copy.deepcopy(made)
    for one in (made, other):
        for stored in one.graph.initializer:
            values = numpy_helper.to_array(stored)
            factor = {"b.w": 64.0}.get(stored.name, 1.0)
            if one is other:
                factor *= {"a.w": by, "a.b": by, "b.w": 1 / by}.get(stored.name, 1.0)
            stored.CopyFrom(numpy_helper.from_array(values * np.float32(factor), stored.name))
    return made, other


def test_what_overflows_in_a_run_fails_though_it_is_proved() -> None:
    made, right = scaled_inside(2.0**20)
    assert bnfold.verify(made, right).status == "pass"
    made, over = scaled_inside(2.0**127)
    result = bnfold.verify(made, over)
    assert result.proof is not None and result.proof.status == "proved"
    assert result.status == "fail"
    assert any("one function on real numbers" in note for note in result.notes)


def test_what_overflows_behind_a_choice_is_no_pass() -> None:
    """The indices may even agree; the numbers ahead of them do not."""

    def ending(made: ModelProto) -> ModelProto:
        made.graph.node.append(op("ArgMax", "y", "k", axis=1))
        made.graph.output[0].CopyFrom(helper.make_tensor_value_info("k", INT, None))
        return made

    made, over = map(ending, scaled_inside(2.0**127))
    result = bnfold.verify(made, over)
    assert result.proof is not None and result.proof.status == "proved"
    assert result.status != "pass", result


def two_outputs(*names: str, plugin: bool = False) -> ModelProto:
    made = model(
        conv("one", "x", "a", (4, 3, 1, 1)),
        conv("two", "x", "b", (4, 3, 1, 1)),
        *([unknown("a", "y")] if plugin else [op("Relu", "a", "y")]),
        op("Tanh", "b", "z"),
        y=" ".join(names),
        **({"domains": DOMAINS} if plugin else {}),
    )
    return made


@pytest.mark.parametrize("plugin", [False, True])
def test_outputs_in_another_order_are_no_pass(plugin: bool) -> None:
    """By name they are the same; who takes them by position gets others."""
    made = two_outputs("y", "z", plugin=plugin)
    other = copy.deepcopy(made)
    outputs = [copy.deepcopy(value) for value in reversed(made.graph.output)]
    del other.graph.output[:]
    other.graph.output.extend(outputs)
    result = bnfold.verify(made, other)
    assert result.status != "pass"
    assert result.proof is not None and "in the order of these" in result.proof.why


def test_an_input_that_is_lost_is_no_pass() -> None:
    made = layer(unknown("t", "y"), domains=DOMAINS)
    made.graph.input.append(helper.make_tensor_value_info("unread", TensorProto.FLOAT, [1]))
    other = copy.deepcopy(made)
    del other.graph.input[1:]
    assert bnfold.verify(made, made).status == "pass"
    assert bnfold.verify(made, other).status != "pass"


def test_an_output_of_another_type_is_no_pass() -> None:
    made = layer(unknown("t", "y"), domains=DOMAINS)
    other = copy.deepcopy(made)
    other.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    assert bnfold.verify(made, other).status != "pass"


def test_a_plugin_of_another_version_is_another_operator() -> None:
    made = layer(unknown("t", "y"), domains=DOMAINS)
    other = copy.deepcopy(made)
    (domain,) = (each for each in other.opset_import if each.domain == "test.ops")
    domain.version = 2
    result = bnfold.verify(made, other)
    assert result.proof is not None and result.proof.status == "not proved"


def test_a_weight_that_a_caller_may_set_is_no_weight() -> None:
    made = saturated()
    folded = bnfold.fold(made)
    for one in (made, folded):
        for stored in one.graph.initializer:
            one.graph.input.append(
                helper.make_tensor_value_info(stored.name, stored.data_type, stored.dims)
            )
    found = bnfold.verify(made, folded).proof
    assert found is not None and found.status != "proved"
    assert bnfold.verify(made, folded, freeze_initializers=True).status == "pass"


# --- outputs by themselves ----------------------------------------------------------------------


def parts() -> tuple[ModelProto, ModelProto]:
    """One output that is saturated, and one that the other file computes by other operators."""
    reseed(5)
    made = model(
        conv("one", "x", "a", (4, 3, 1, 1)),
        const("Add", "a", "far", np.float32(60)),
        op("Sigmoid", "far", "y"),
        conv("two", "x", "b", (4, 3, 1, 1)),
        op("Softplus", "b", "z"),
        y="y z",
    )
    other = copy.deepcopy(made)
    (soft,) = (node for node in other.graph.node if node.op_type == "Softplus")
    place = list(other.graph.node).index(soft)
    nodes = [*other.graph.node]
    nodes[place : place + 1] = [
        op("Exp", "b", "e"),
        op("Add", "e unit", "f"),
        op("Log", "f", "z"),
    ]
    del other.graph.node[:]
    other.graph.node.extend(nodes)
    other.graph.initializer.append(numpy_helper.from_array(np.float32(1), "unit"))
    return made, other


def by_output(result: EndToEnd) -> dict[str, str]:
    assert result.proof is not None
    return {each.name: each.status for each in result.proof.outputs}


def test_a_part_of_the_outputs_is_proved_and_the_rest_is_compared() -> None:
    made, other = parts()
    result = bnfold.verify(made, other)
    assert by_output(result) == {"y": "proved", "z": "not proved"}
    assert result.status == "pass", result
    assert "1 of 2 outputs proved: y" in str(result)
    wrong = changed(other, "two.w", 1.02)
    assert bnfold.verify(made, wrong).status == "fail"


def test_a_part_that_is_refuted_fails_the_whole() -> None:
    made, other = parts()
    result = bnfold.verify(made, changed(other, "one.w", 1.0001))
    assert by_output(result) == {"y": "refuted", "z": "not proved"}
    assert (result.status, result.proof and result.proof.at) == ("fail", "one")


def test_an_error_in_one_layer_leaves_the_outputs_ahead_of_others_proved() -> None:
    made = two_outputs("y", "z")
    assert by_output(bnfold.verify(made, made)) == {"y": "proved", "z": "proved"}
    result = bnfold.verify(made, changed(made, "two.w"))
    assert by_output(result) == {"y": "proved", "z": "refuted"}
    assert result.status == "fail"


def test_two_errors_that_lie_ahead_of_other_outputs_are_two_refutations() -> None:
    made = two_outputs("y", "z")
    result = bnfold.verify(made, changed(changed(made, "two.w"), "one.w"))
    assert by_output(result) == {"y": "refuted", "z": "refuted"}


def test_what_no_output_needs_is_not_asked_for() -> None:
    made = two_outputs("y")
    other = copy.deepcopy(made)
    (tanh,) = (node for node in other.graph.node if node.op_type == "Tanh")
    tanh.op_type = "Sinh"
    assert bnfold.prove(made, other).status == "proved"


def test_random_numbers_that_two_outputs_share() -> None:
    """Each output by itself is the same; both together are not."""

    def drawing(*names: str) -> ModelProto:
        draws = [op("RandomNormalLike", "x", name) for name in names]
        ends = [op("Relu", names[0], "y"), op("Tanh", names[-1], "z")]
        return model(*draws, *ends, y="y z")

    shared, own = drawing("a"), drawing("a", "b")
    assert bnfold.verify(shared, shared).status == "pass"
    assert bnfold.verify(own, own).status == "pass"
    for pair in ((shared, own), (own, shared)):
        result = bnfold.verify(*pair)
        assert result.status != "pass", result
        assert [*by_output(result).values()].count("proved") < 2


def test_draws_in_another_order_are_not_refuted() -> None:
    """Any of them may be any other: only together they say which is which."""

    def drawing(first: str, second: str) -> ModelProto:
        reseed(5)
        return model(
            op("RandomNormalLike", "x", first),
            op("RandomNormalLike", "x", second),
            conv("one", "u", "a", (4, 3, 1, 1)),
            conv("two", "v", "b", (4, 3, 1, 1)),
            op("Add", "a b", "y"),
        )

    assert bnfold.prove(drawing("u", "v"), drawing("u", "v")).status == "proved"
    assert bnfold.prove(drawing("u", "v"), drawing("v", "u")).status != "refuted"


# --- the verdict --------------------------------------------------------------------------------


def test_a_tolerance_that_was_asked_for_decides_on_weights_that_differ() -> None:
    made = layer(op("Relu", "t", "y"))
    folded = bnfold.fold(made)
    wrong = changed(folded, weight_of(folded), 1.001)
    assert bnfold.verify(made, wrong, rtol=0.0, atol=1e-9).status == "fail"
    result = bnfold.verify(made, wrong, rtol=0.0, atol=0.02)
    assert result.status == "pass", result
    assert result.proof is not None and result.proof.status == "refuted"
    assert any("that was asked for decides" in note for note in result.notes)


def test_a_provider_that_is_not_there_is_no_pass() -> None:
    made = nowhere()
    assert bnfold.verify(made, bnfold.fold(made), providers=["cpu", "tensorrt"]).status != "pass"
    made = chosen()
    assert bnfold.verify(made, bnfold.fold(made), providers=["tensorrt"]).status != "pass"


def test_renamed_ports_in_another_order_are_left_open() -> None:
    """By position the weights differ; in another order the two agree, and nobody knows which."""

    def summed(one: str, other: str, turned: bool) -> ModelProto:
        reseed(5)
        made = model(
            conv("first", one, "a", (4, 3, 1, 1)),
            conv("second", other, "b", (4, 3, 1, 1)),
            op("Add", "a b", "y"),
        )
        names = [other, one] if turned else [one, other]
        shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8]) for n in names]
        del made.graph.input[:]
        made.graph.input.extend(shapes)
        return made

    made = summed("p", "q", False)
    assert bnfold.verify(made, summed("r", "s", False)).status == "pass"
    assert bnfold.verify(made, summed("r", "s", True)).status == "inconclusive"


def test_without_a_proof_all_is_as_a_run_sees_it() -> None:
    made = ahead_of_a_plugin()
    result = bnfold.verify(made, bnfold.fold(made), prove=False)
    assert (result.status, result.proof) == ("inconclusive", None)


def test_power_is_measured_where_it_is_asked_for() -> None:
    made = layer(op("Relu", "t", "y"))
    folded = bnfold.fold(made)
    assert bnfold.verify(made, folded).power == ()
    assert bnfold.verify(made, folded, power=True).power


# --- a proof takes no verdict down --------------------------------------------------------------


def failing(error: BaseException) -> Callable[..., Any]:
    def prove(*_: Any, **__: Any) -> Any:
        raise error

    return prove


@pytest.mark.parametrize(
    "error, told",
    [
        (ZeroDivisionError("by zero"), "a defect of bnfold: ZeroDivisionError: by zero"),
        (RecursionError("too deep"), "RecursionError"),
        (MemoryError(), "out of memory"),
        (proofs.Stopped("no more"), "no more"),
        (bnfold.UsageError("no weights"), "no weights"),
    ],
)
def test_an_error_in_a_proof_is_why_nothing_is_proved(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    monkeypatch.setattr(by_proof, "prove", failing(error))
    made = layer(op("Relu", "t", "y"))
    result = bnfold.verify(made, bnfold.fold(made))
    assert (result.status, result.proof and result.proof.status) == ("pass", "not proved")
    assert result.proof is not None and told in result.proof.why
    assert result.power  # so errors are planted again


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it: an error within a proof does not end the verdict."""
    monkeypatch.setattr(by_proof, "of_defect", QUIET)


QUIET = by_proof.of_defect


def test_a_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    monkeypatch.setattr(by_proof, "prove", failing(ZeroDivisionError("by zero")))
    monkeypatch.setenv("BNFOLD_TRACEBACK", "1")
    made = layer(op("Relu", "t", "y"))
    with pytest.raises(ZeroDivisionError):
        bnfold.verify(made, made)


@pytest.mark.parametrize("what, value", [("SECONDS", -1.0), ("_FREE", -(1 << 50))])
def test_a_proof_has_bounds_of_its_own(
    what: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_proof, what, value)
    made = layer(op("Relu", "t", "y"))
    result = bnfold.verify(made, bnfold.fold(made))
    assert (result.status, result.proof and result.proof.status) == ("pass", "not proved")


# --- which checks of a run a proof settles ------------------------------------------------------

OPEN = OutputCheck("y", "signed", "inconclusive")


@pytest.mark.parametrize(
    "check, status",
    [
        (replace(OPEN, cause=Cause.RANDOM), "pass"),
        (replace(OPEN, cause=Cause.HIDDEN_ERRORS), "pass"),
        (replace(OPEN, cause=Cause.ROUNDING_ALONE, contested=True), "pass"),
        (replace(OPEN, cause=Cause.NOT_FINITE), "pass"),
        (replace(OPEN, status="fail"), "fail"),
        (replace(OPEN, cause=Cause.DIFFERS_AT, about=("t",), contested=True), "inconclusive"),
        (
            replace(OPEN, cause=Cause.DIFFERS_AHEAD, about=("Relu", 1.0, 0.1), contested=True),
            "inconclusive",
        ),
        (
            replace(
                OPEN,
                cause=Cause.MISMATCH_BY_ROUNDING,
                about=("infinite at other places",),
                contested=True,
            ),
            "inconclusive",
        ),
        (
            replace(OPEN, cause=Cause.MISMATCH_BY_ROUNDING, about=("shape [1]",), contested=True),
            "pass",
        ),
        (replace(OPEN, output="other", cause=Cause.RANDOM), "inconclusive"),
    ],
)
def test_what_a_proof_settles(check: OutputCheck, status: str) -> None:
    """Of a proof of one output of two."""
    outputs = (proofs.OutputProof("y", "proved"), proofs.OutputProof("other", "not proved"))
    (found,) = by_proof.judged([check], proofs.Proof("not proved", outputs=outputs))
    assert found.status == status


# --- where weights that differ refute nothing ---------------------------------------------------


def test_an_empty_tensor_refutes_nothing() -> None:
    """A scale of no channel is nowhere; nobody misses it."""
    made = model(
        conv("conv", "x", "c", (5, 3, 1, 1)),
        op("Split", "c parts", "a b d", axis=1),
        op("Relu", "a", "y"),
        const("Mul", "b", "z", np.float32(2)),
        op("Relu", "d", "w"),
        y="y z w",
        weights={"parts": np.array([3, 0, 2])},
        opset=13,
    )
    folded = bnfold.fold(made)
    assert all(node.op_type != "Mul" for node in folded.graph.node)
    assert bnfold.verify(made, folded).status == "pass"


def test_weights_that_are_stored_in_half_precision_refute_nothing_in_single() -> None:
    def widened(kernel: Any, *tail: Any) -> ModelProto:
        reseed(5)
        wide = op("Cast", "k", "w", to=TensorProto.FLOAT)
        return model(wide, op("Conv", "x w", "c"), *tail, weights={"k": kernel.astype(np.float16)})

    kernel = np.random.default_rng(3).normal(size=(4, 3, 1, 1)).astype(np.float16)
    factor = np.float32([0.3, 1.7, 0.9, 2.3]).reshape(4, 1, 1)
    made = widened(kernel, const("Mul", "c", "y", factor))
    other = widened(kernel.astype(np.float32) * factor[..., None], op("Identity", "c", "y"))
    assert bnfold.prove(made, other).status != "refuted"
    assert bnfold.verify(made, other).status == "pass"
