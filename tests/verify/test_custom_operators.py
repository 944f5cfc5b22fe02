"""Operators that onnxruntime does not know: with a library they run, without one both are cut."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import bnfold
from bnfold._errors import UsageError
from bnfold._judge import unknown_operators
from bnfold._run import libraries
from bnfold._run.bounds import UNBOUNDED, Bounds
from bnfold._run.session import EngineError

from ..graphs import bn, const, conv, model, op, rand, subgraph

DOMAINS = {"test.ops": 1}
Spoil = Callable[[ModelProto], None]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of `custom_operators.c`."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    built = tmp_path_factory.mktemp("library") / "operators.so"
    source = Path(__file__).with_name("custom_operators.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, source], check=True, timeout=60)
    return built


def unknown(x: str, y: str, kind: str = "Doubled", **attributes: Any) -> onnx.NodeProto:
    return op(kind, x, y, name=f"{y}_plugin", domain="test.ops", **attributes)


def between(**attributes: Any) -> ModelProto:
    """Conv → BN → Doubled → Conv → BN."""
    return model(
        conv("conv_0", "x", "a", (4, 3, 3, 3)),
        bn("bn_0", "a", "b", 4),
        unknown("b", "c", **attributes),
        conv("conv_1", "c", "d", (4, 4, 3, 3)),
        bn("bn_1", "d", "y", 4),
        x=(1, 3, 8, 8),
        domains=DOMAINS,
    )


def scaled(made: ModelProto, name: str, factor: float = 1.02) -> None:
    """One channel of a stored weight, wrong by 2 %."""
    (stored,) = (t for t in made.graph.initializer if t.name == name)
    values = numpy_helper.to_array(stored).copy()
    values[0] *= np.float32(factor)
    stored.CopyFrom(numpy_helper.from_array(values, name))


def weight_of(made: ModelProto, label: str) -> str:
    (node,) = (node for node in made.graph.node if node.name == label)
    return str(node.input[1])


def wrong_ahead(made: ModelProto) -> None:
    scaled(made, weight_of(made, "conv_0"))


def wrong_behind(made: ModelProto) -> None:
    scaled(made, weight_of(made, "conv_1"))


# --- with the library --------------------------------------------------------------------------


def test_a_library_runs_its_operators(library: Path) -> None:
    made = between()
    result = bnfold.verify(made, bnfold.fold(made), ops_libraries=[library])
    assert (result.status, result.notes) == ("pass", ())
    assert {check.output for check in result.checks} == {"y"}
    assert [check.status for check in result.providers] == ["pass"]


@pytest.mark.parametrize("spoil", [wrong_ahead, wrong_behind])
def test_a_wrong_fold_fails_with_the_library(library: Path, spoil: Spoil) -> None:
    made = between()
    other = bnfold.fold(made)
    spoil(other)
    assert bnfold.verify(made, other, ops_libraries=[library]).status == "fail"


def test_an_operator_that_the_library_lacks_is_cut_out_all_the_same(library: Path) -> None:
    made = model(
        conv("conv", "x", "a", (4, 3, 3, 3)),
        bn("bn", "a", "b", 4),
        unknown("b", "c"),
        unknown("c", "y", "Other"),
        domains=DOMAINS,
    )
    result = bnfold.verify(made, bnfold.fold(made), ops_libraries=[library])
    assert result.status == "pass"
    assert "onnxruntime does not run test.ops::Other:" in result.notes[0]
    assert {check.output for check in result.checks} == {"input 0 of y_plugin"}


@pytest.mark.parametrize("kind", ["missing", "text"])
def test_a_library_that_cannot_be_loaded_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ops.so"
    if kind == "text":
        path.write_text("no library")
    made = between()
    with pytest.raises(UsageError, match=r"ops\.so: .*--ops-library") as caught:
        bnfold.verify(made, made, ops_libraries=[str(path)])
    assert "\n" not in str(caught.value)


# --- without it --------------------------------------------------------------------------------


def test_both_are_cut_at_what_it_reads_and_behind_what_it_writes() -> None:
    made = between()
    result = bnfold.verify(made, bnfold.fold(made))
    assert result.status == "pass"
    assert {check.output for check in result.checks} == {"y", "input 0 of c_plugin"}
    assert "does not run test.ops::Doubled" in result.notes[0]
    assert "--ops-library" in result.notes[0]
    assert result.power and all(planted.noticed for planted in result.power)


def test_given_inputs_are_taken_and_the_rest_is_drawn() -> None:
    made = between()
    feeds = {"x": rand(1, 3, 8, 8)}
    result = bnfold.verify(made, bnfold.fold(made), inputs=feeds)
    assert (result.status, {c.inputs for c in result.checks}) == ("pass", {"given"})


def other_attribute(made: ModelProto) -> None:
    (node,) = (node for node in made.graph.node if node.op_type == "Doubled")
    node.attribute.append(helper.make_attribute("alpha", 0.5))


def dropped(made: ModelProto) -> None:
    (node,) = (node for node in made.graph.node if node.op_type == "Doubled")
    node.CopyFrom(helper.make_node("Identity", node.input, node.output))


def read_elsewhere(made: ModelProto) -> None:
    """It reads another tensor of the same shape."""
    (node,) = (node for node in made.graph.node if node.op_type == "Doubled")
    made.graph.node.insert(1, helper.make_node("Relu", [node.input[0]], ["other"]))
    next(n for n in made.graph.node if n.op_type == "Doubled").input[0] = "other"


@pytest.mark.parametrize(
    "spoil, status",
    [
        (wrong_ahead, "fail"),
        (wrong_behind, "fail"),
        (read_elsewhere, "fail"),
        (other_attribute, "inconclusive"),
        (dropped, "inconclusive"),
    ],
)
def test_what_is_wrong_around_it_never_passes(spoil: Spoil, status: str) -> None:
    made = between(alpha=1.0)
    other = bnfold.fold(made)
    if spoil is other_attribute:
        next(n for n in other.graph.node if n.op_type == "Doubled").ClearField("attribute")
    spoil(other)
    assert bnfold.verify(made, other).status == status


def test_constants_that_it_reads_are_compared() -> None:
    made = model(
        conv("conv", "x", "a", (4, 3, 3, 3)),
        bn("bn", "a", "b", 4),
        op("Deform", "b w", "y", domain="test.ops"),
        weights={"w": rand(4, 4)},
        domains=DOMAINS,
    )
    other = bnfold.fold(made)
    assert bnfold.verify(made, other).status == "pass"
    scaled(other, "w", 1.0 + 1e-4)
    assert bnfold.verify(made, other).status == "fail"


@pytest.mark.parametrize("plugin", [op("TopBoxes_TRT", "b", "y"), unknown("b", "y", "Boxes")])
def test_an_operator_at_the_end_is_judged_by_what_it_reads(plugin: onnx.NodeProto) -> None:
    """Its own output is left out; a plugin may stand in ONNX's own domain, too."""
    made = model(
        conv("conv_0", "x", "a", (4, 3, 3, 3)), bn("bn", "a", "b", 4), plugin, domains=DOMAINS
    )
    other = bnfold.fold(made)
    result = bnfold.verify(made, other)
    assert result.status == "pass"
    assert [check.output.partition(" of ")[0] for check in result.checks] == ["input 0"] * 3
    wrong_ahead(other)
    assert bnfold.verify(made, other).status == "fail"


def test_outputs_in_another_order_do_not_pass() -> None:
    made = model(
        conv("conv", "x", "a", (4, 3, 3, 3)),
        op("Halves", "a", "b c", domain="test.ops"),
        conv("left", "b", "y", (4, 4, 1, 1)),
        conv("right", "c", "z", (4, 4, 1, 1)),
        y="y z",
        domains=DOMAINS,
    )
    assert bnfold.verify(made, made).status == "pass"
    other = ModelProto.FromString(made.SerializeToString())
    next(n for n in other.graph.node if n.op_type == "Halves").output[:] = ["c", "b"]
    assert bnfold.verify(made, other).status in ("fail", "inconclusive")


def test_a_branch_that_holds_one_is_cut_out_whole() -> None:
    def made(inner: str) -> ModelProto:
        return model(
            conv("conv_0", "x", "a", (4, 3, 3, 3)),
            bn("bn", "a", "b", 4),
            op("ReduceMax", "x", "m", keepdims=0),
            op("Greater", "m zero", "t"),
            op(
                "If",
                "t",
                "c",
                then_branch=subgraph(unknown("b", "r"), y="r"),
                else_branch=subgraph(op(inner, "b", "s"), y="s"),
            ),
            conv("conv_1", "c", "y", (4, 4, 1, 1)),
            weights={"zero": np.float32(0)},
            domains=DOMAINS,
        )

    original = made("Relu")
    other = bnfold.fold(original)
    result = bnfold.verify(original, other)
    assert result.status == "pass", result
    assert {check.output for check in result.checks} >= {"y", "b in c_if"}
    wrong_ahead(other)
    assert bnfold.verify(original, other).status == "fail"
    for node in other.graph.node:
        if node.op_type == "If":
            node.attribute[1].g.node[0].op_type = "Abs"
    assert bnfold.verify(original, other).status == "inconclusive"


def test_what_hides_errors_ahead_of_it_leaves_the_verdict_open() -> None:
    """The power of the cut comparison counts: what it reads is saturated."""
    made = model(
        conv("conv", "x", "a", (4, 3, 3, 3)),
        bn("bn", "a", "b", 4),
        const("Mul", "b", "m", np.float32(1e-12)),
        const("Add", "m", "n", np.float32(1)),
        unknown("n", "y"),
        domains=DOMAINS,
    )
    assert bnfold.verify(made, bnfold.fold(made)).status == "inconclusive"


def test_what_is_written_takes_its_sizes_from_a_run_where_nothing_else_tells_them() -> None:
    """A skip around the operator fits no sizes but those that come out of the run."""
    made = model(
        conv("conv_0", "x", "a", (4, 3, 3, 3)),
        bn("bn_0", "a", "b", 4),
        unknown("b", "c"),
        op("Add", "b c", "s"),
        conv("conv_1", "s", "d", (4, 4, 3, 3)),
        bn("bn_1", "d", "y", 4),
        x=("n", 3, "h", "w"),
        domains=DOMAINS,
    )
    other = bnfold.fold(made)
    assert bnfold.verify(made, other).status == "pass"
    for spoil in (wrong_ahead, wrong_behind):
        wrong = ModelProto.FromString(other.SerializeToString())
        spoil(wrong)
        assert bnfold.verify(made, wrong).status == "fail"


def test_an_operator_that_has_no_kernel_is_cut_out_too() -> None:
    """Of onnxruntime's own domain, for GPUs alone; it knows the operator, so a run tells."""
    made = model(
        conv("conv_0", "x", "a", (4, 3, 3, 3)),
        bn("bn_0", "a", "b", 4),
        op("Transpose", "b", "t", perm=[0, 2, 3, 1]),
        op("GroupNorm", "t g h", "y", domain="com.microsoft", groups=2, activation=0),
        x=(1, 3, 8, 8),
        weights={"g": rand(4), "h": rand(4)},
        domains={"com.microsoft": 1},
    )
    other = bnfold.fold(made)
    result = bnfold.verify(made, other)
    assert result.status == "pass"
    assert any("does not run com.microsoft::GroupNorm" in note for note in result.notes)
    changed = ModelProto.FromString(other.SerializeToString())
    scaled(changed, "g")  # as a fold that moves a map into it would
    assert bnfold.verify(made, changed).status == "inconclusive"
    wrong_ahead(other)
    assert bnfold.verify(made, other).status == "fail"


# --- whatever the engine's words -----------------------------------------------------------------


def test_an_unknown_operator_is_one_of_which_the_engine_says_what_it_says_of_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def engine(content: bytes, bounds: Bounds) -> None:
        (node,) = onnx.load_model_from_string(content).graph.node
        if node.op_type == "Known":
            raise EngineError(f"Known takes two tensors, {node.output[0]} gets one")
        if node.op_type != "Runs":
            raise EngineError(f"{node.op_type}? Nobody here has heard of {node.op_type}")

    made = model(
        unknown("x", "a", "Known"),
        unknown("a", "b", "Runs"),
        unknown("b", "c", "Nobody"),
        unknown("c", "y"),
        domains=DOMAINS,
    )
    monkeypatch.setattr(libraries, "OnnxRuntime", engine)
    found = libraries.unknown_operators(made, UNBOUNDED)
    assert found == {("test.ops", "Nobody"), ("test.ops", "Doubled")}


def test_an_operator_without_a_kernel_is_the_one_that_is_named() -> None:
    """Two domains have the type: the name of the node tells which is meant."""
    made = model(
        op("Twice", "x", "a", name="first", domain="test.ops"),
        op("Twice", "a", "b", name="second", domain="more.ops"),
        op("Once", "b", "y", name="third", domain="more.ops"),
        domains={"test.ops": 1, "more.ops": 1},
    )

    def named(why: str) -> set[Any]:
        return unknown_operators._without_kernel(made, made, why)

    assert named("nothing runs 'Twice'(1), which is node second") == {("more.ops", "Twice")}
    assert named("nothing runs Once(7) in a Oncelike model") == {("more.ops", "Once")}
    assert named("nothing runs Twice") == named("out of order") == set()
