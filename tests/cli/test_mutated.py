"""What mutation of files has found (`tests.fuzz --command`): one case of each kind."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

import bnfold as library
from bnfold._onnx.files.load import why_invalid

from ..graphs import bn, const, conv, model, op, rand, subgraph
from . import examples
from .command import bnfold, refused


def unbounded() -> ModelProto:
    """A Clip of opset 10 with a bound under no name that it knows."""
    return model(
        conv("a", "x", "a", (4, 4, 1, 1)),
        op("Clip", "a", "b", strange=0.25),
        const("Add", "b", "y", rand(4, 1, 1)),
        x=(2, 4, 4, 4),
        opset=10,
    )


def test_what_a_check_trips_over_is_no_valid_model(tmp_path):
    """A certificate asks an operator for what it has to have: that is no defect of bnfold."""
    onnx.save(unbounded(), tmp_path / "m.onnx")
    run = bnfold(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--no-batchnorm")
    refused(run, "m.onnx is not a valid ONNX model")
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (onnx.AttributeProto.UNDEFINED, "epsilon", 0.5),
        (onnx.AttributeProto.INT, "epsilon", 0.5),
        (onnx.AttributeProto.TYPE_PROTO, "pads", [1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_an_attribute_that_holds_something_else_than_its_type_says(
    kind, name, value, inner, tmp_path
):
    """Who goes by the one reads another number than who goes by the other."""
    pads = {"pads": value} if name == "pads" else {}
    epsilon = {"epsilon": value} if name == "epsilon" else {}
    pieces = conv("a", "x", "a", (4, 4, 1, 1), **pads), bn("b", "a", "y", 4, **epsilon)
    if inner:
        body = subgraph(*pieces)
        branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
        made = model((branch, {"c": np.array(True)}), x=(2, 4, 4, 4))
        graph = made.graph.node[0].attribute[0].g
    else:
        made = model(*pieces, x=(2, 4, 4, 4))
        graph = made.graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == name:
                attribute.type = kind
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    refused(bnfold(tmp_path / "m.onnx"), f"the attribute '{name}' of", "its type says")
    with pytest.raises(library.UsageError, match="its type says"):
        library.plan(made)
    made.ir_version = 1  # An attribute of that time says no type.
    assert library.plan(made).folds or inner


@pytest.mark.parametrize(("deep", "fine"), [(3, True), (40, False), (3000, False)])
def test_functions_that_call_the_next_one_twice(deep, fine):
    """A file of kilobytes that stands for more operators than any run has time for."""
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]

    def function(at):
        names = ("Relu", "Relu") if at == deep else (f"F{at + 1}",) * 2
        domain = "" if at == deep else "my"
        nodes = [
            helper.make_node(name, [source], [target], domain=domain)
            for name, source, target in zip(names, "am", "mb", strict=True)
        ]
        return helper.make_function("my", f"F{at}", ["a"], ["b"], nodes, versions)

    made = model(
        conv("c", "x", "c", (4, 3, 1, 1)),
        helper.make_node("F0", ["c"], ["y"], domain="my"),
        domains={"my": 1},
    )
    made.functions.extend(function(at) for at in range(deep + 1))
    if fine:
        assert not library.plan(made).folds
        return
    with pytest.raises(library.UsageError, match="stands for too many operators"):
        library.plan(made)


@pytest.mark.parametrize("version", [-7, 1 << 31])
@pytest.mark.parametrize("where", ["model", "function"])
def test_no_version_is_negative_or_huge(where, version, tmp_path):
    """No runtime loads it; operators of such a version mean nothing."""
    inner = [helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function("my", "F", ["a"], ["b"], inner, [helper.make_opsetid("", 17)])
    made = model(helper.make_node("F", ["x"], ["y"], domain="my"), functions=[function])
    (made if where == "model" else made.functions[0]).opset_import.add(domain="my", version=version)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    refused(bnfold(tmp_path / "m.onnx"), f"it asks for version {version} of 'my'")


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_no_operator_with_an_odd_bias_takes_a_map_in(kind, tmp_path):
    """Not even a scale of what it reads, which would leave the bias as it is."""
    if kind == "Conv":
        weights = {"w": rand(4, 4, 1, 1), "c": rand(4, 1, 1)}
    else:
        weights = {"w": rand(4, 6), "c": rand(2, 1, 6)}
    linear = (op(kind, "m w c", "y"), weights)
    shape = (2, 4, 3, 3) if kind == "Conv" else (2, 4)
    scale = (4, 1, 1) if kind == "Conv" else (4,)
    made = model(const("Mul", "x", "m", rand(*scale)), linear, x=shape)
    plan = library.plan(made)
    assert not plan.folds
    assert any("does not allow" in kept.message for kept in plan.kept)


def test_no_fold_of_an_invalid_model_is_wrong(tmp_path):
    """Four maps of three channels, one of which is read. Nothing runs it, and nothing folds."""
    made = model(
        bn("m", "x", "a", 4),
        op("Gather", "a at", "b", axis=1),
        conv("c", "b", "y", (3, 4, 1)),
        x=(4, 3, 4, 4),
        weights={"at": np.array(1)},
    )
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [4, 3, 4]))
    onnx.save(made, tmp_path / "m.onnx")
    run = bnfold(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert run.code == 0 and run.lines[0] == "nothing to fold"
    assert (tmp_path / "o.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


@pytest.mark.parametrize("external", [False, True])
def test_what_no_runtime_minds_is_valid(external, tmp_path):
    """The checker of onnx asks for a graph's name, and for shapes of outputs."""
    made = model(conv("a", "x", "a", (4, 3, 1, 1)), bn("b", "a", "y", 4))
    made.graph.name = ""
    made.graph.output[0].type.tensor_type.ClearField("shape")
    assert why_invalid(made) is None
    if external:
        onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
        made = onnx.load(tmp_path / "m.onnx", load_external_data=False)
        assert why_invalid(made, tmp_path / "m.onnx") is None
        assert why_invalid(made) is None
    made.graph.node[0].attribute.add(name="strange", type=onnx.AttributeProto.INT, i=1)
    assert "strange" in why_invalid(made)


def test_what_a_proof_trips_over_is_no_valid_model(tmp_path):
    """The proof says why it proves nothing; the model folds, and its run is judged."""
    made = model(conv("a", "x", "a", (4, 4, 1, 1)), bn("b", "a", "y", 4), x=(2, 4, 4, 4))
    made.graph.node.add(op_type="Add", input=["x", "x"])
    onnx.save(made, tmp_path / "m.onnx")
    run = bnfold(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert "not proved: the original is not a valid ONNX model" in run.out
    assert "defect" not in run.out


def test_no_name_makes_a_model_in_binary_form_a_text(tmp_path):
    """onnx goes by the suffix. Nothing runs this, so that it is cut, which reads both again."""
    for name in ("m.onnx", "m.json", "m.textproto"):
        onnx.save(examples.strange(), tmp_path / name, "protobuf")
    expected = bnfold(tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert expected.code in (0, 3)
    for source, target in (("m.onnx", "o.json"), ("m.json", "p.onnx"), ("m.textproto", "o.txtpb")):
        run = bnfold(tmp_path / source, "-o", tmp_path / target)
        assert (run.code, run.err) == (expected.code, "")
    assert onnx.load(tmp_path / "o.onnx") == onnx.load(tmp_path / "o.json")
