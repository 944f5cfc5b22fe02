"""Functions that call functions, many and deep: what reading, planning and naming them costs."""

from __future__ import annotations

import onnx
import pytest

import bnfold
from bnfold._onnx import fold as folding
from bnfold._onnx.read import inlining
from bnfold._onnx.read.scopes import Names

from .functions import DOMAIN, block, call, constant, convolving, function, params
from .graphs import counts, fold, model, op, rand


def test_function_calls_a_function():
    inner = function("Inner", "x", "y", convolving("k", op("Add", "c k", "y")))
    outer = function(
        "Outer",
        "x",
        "y",
        [
            op("Inner", "x", "a", domain="my"),
            constant("k", rand(1)),
            op("Mul", "a k", "b"),
            op("Inner", "b", "y", domain="my"),
        ],
    )
    m = model(
        op("Outer", "x", "h", domain="my"),
        op("Inner", "h", "y", domain="my"),
        functions=[inner, outer],
        domains=DOMAIN,
    )
    after = fold(m)
    assert "Add" not in counts(after)


def nested(depth):
    """Functions that call each other in a row, with a Relu in each."""
    body = [[op("Relu", "x", "h"), op(f"F{n + 1}", "h", "y", domain="my")] for n in range(depth)]
    body.append([op("Relu", "x", "y")])
    return model(
        op("F0", "x", "y", domain="my"),
        functions=[function(f"F{n}", "x", "y", nodes) for n, nodes in enumerate(body)],
        domains=DOMAIN,
    )


@pytest.mark.parametrize(
    ("calls", "plans"), [("none", 1), ("every one folds", 2), ("one folds, one may not", 3)]
)
def test_a_model_is_planned_no_more_often_than_it_has_forms(calls, plans, monkeypatch):
    """As it is, with all calls inlined, and with those that pay; and not again to be folded."""
    read, seen = folding.read, []
    monkeypatch.setattr(folding, "read", lambda *given: seen.append(given) or read(*given))
    pieces = {
        "none": [op("Relu", "x", "y")],
        "every one folds": [call("a", "x", "h"), call("b", "h", "y")],
        "one folds, one may not": [
            call("a", "x", "h"),
            op("Plain", "h", "y", domain="my", name="plain"),
        ],
    }
    m = model(
        *pieces[calls],
        functions=[block(), function("Plain", "x", "y", [op("Relu", "x", "y")])],
        domains=DOMAIN,
        weights=params("a", 3, 4) | params("b", 4, 5),
    )
    folding.prepare(m, None).apply()
    assert len(seen) == plans
    onnx.checker.check_model(m)


def test_functions_that_call_each_other_in_a_row_are_dropped_in_one_pass(monkeypatch):
    """Before, each pass over the whole model dropped only those that nobody called by then."""
    nodes, seen = inlining._nodes, []

    def counted(given):
        seen.extend(given)
        return nodes(given)

    monkeypatch.setattr(inlining, "_nodes", counted)

    def steps(depth):
        seen.clear()
        inlined = inlining.inline(nested(depth)).model
        assert not inlined.functions and len(inlined.graph.node) == depth + 1
        return len(seen)

    assert steps(100) <= 13 * steps(10)


def test_functions_that_call_each_other_too_deep_stay_from_there_on():
    """Each level made the names longer, and more levels than Python has ended in a traceback."""
    m = nested(1200)
    inlined = inlining.inline(m).model
    assert 100 < len(inlined.graph.node) < 300
    assert len(inlined.functions) == 1201 + 1 - len(inlined.graph.node)
    assert bnfold.plan(m).folds == ()


@pytest.mark.parametrize("taken", [(), ("w_2",)])
def test_many_fresh_names_of_one_kind_are_found_in_one_step_each(taken):
    class Counted(set):
        asked = 0

        def __contains__(self, name):
            Counted.asked += 1
            return set.__contains__(self, name)

    names = Names(onnx.ModelProto(), [])
    names._taken = Counted(taken)
    made = [names.fresh("w") for _ in range(100)]
    wanted = [name for name in ["w", *(f"w_{n}" for n in range(1, 102))] if name not in taken]
    assert made == wanted[:100]
    assert Counted.asked <= 300
