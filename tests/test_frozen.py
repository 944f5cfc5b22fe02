"""``freeze_initializers``: initializers that are inputs, too, are taken for fixed, and fold.

That they stay without it is tested where their parameters are (`test_constants`). Here: what is
dropped from the inputs and what is not, at each level of a model and before IR version 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

import bnfold
from bnfold import UsageError
from bnfold._onnx.read.frozen import freeze
from bnfold._pipeline import models

from .cli.command import bnfold as command
from .cli.command import refused
from .graphs import bn, conv, counts, feeds, model, op, overridable, rand, run, subgraph


def network(ir: int = 8) -> ModelProto:
    """A Conv and a BatchNormalization with all parameters listed as inputs, ahead of the data."""
    m = model(conv("c", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "y", 4), ir=ir)
    overridable(m, *(t.name for t in m.graph.initializer))
    data, *listed = m.graph.input
    data = helper.make_tensor_value_info(data.name, 1, (2, 3, 8, 8))
    del m.graph.input[:]
    m.graph.input.extend([*listed, data])
    return m


def inputs(m: ModelProto) -> list[str]:
    return [value.name for value in m.graph.input]


def same(m: ModelProto, folded: ModelProto) -> None:
    data = {"x": feeds(m)["x"]}
    for wanted, found in zip(run(m, data), run(folded, data), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_they_fold_and_are_no_inputs_any_more():
    m = network()
    before = m.SerializeToString()
    assert counts(bnfold.fold(m)) == counts(m) and not bnfold.plan(m).folds
    folded = bnfold.fold(m, freeze_initializers=True)
    assert counts(folded) == {"Conv": 1} and inputs(folded) == ["x"]
    assert len(bnfold.plan(m, freeze_initializers=True).folds) == 1
    assert m.SerializeToString() == before
    same(m, folded)


def test_before_ir_version_4_they_have_to_be_inputs():
    m = network(ir=3)
    folded = bnfold.fold(m, freeze_initializers=True)
    assert folded.SerializeToString() == bnfold.fold(m).SerializeToString()
    assert counts(folded) == {"Conv": 1}
    assert {t.name for t in folded.graph.initializer} < set(inputs(folded))
    same(m, folded)


def test_nothing_else_of_a_model_changes():
    m = overridable(model(conv("c", "x", "y", (4, 3, 3, 3))), "c.w")
    m.graph.doc_string, m.producer_name = "kept", "me"
    wanted = ModelProto()
    wanted.CopyFrom(m)
    del wanted.graph.input[1]
    assert (
        bnfold.fold(m, freeze_initializers=True).SerializeToString() == wanted.SerializeToString()
    )


def test_a_sparse_initializer_is_one_too():
    values = helper.make_tensor("w", 1, [2], [2.0, -1.0])
    places = helper.make_tensor("w_places", 7, [2], [1, 2])
    m = model(op("Mul", "x w", "y"), x=(2, 3))
    m.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))
    m.graph.input.append(helper.make_tensor_value_info("w", 1, [3]))
    freeze(m)
    assert inputs(m) == ["x"]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_body_that_reads_them_folds_and_its_own_inputs_stay(frozen):
    """The inputs of a Loop's body are set by the Loop, one after the other."""
    body = subgraph(
        op("BatchNormalization", "s g b m v", "t", name="bn"),
        conv("c", "t", "o", (3, 3, 1, 1)),
        op("Identity", "go", "cond_out"),
        x={"n": (7, ()), "cond": (9, ()), "s": (1, 3, 4, 4)},
        y="cond_out o",
    )
    body.node[2].input[0] = "cond"
    stored: dict[str, Any] = {"g": rand(3), "b": rand(3), "m": rand(3), "v": np.abs(rand(3))}
    loop = op("Loop", "times _ x", "y", body=body)
    m = model(loop, x=(1, 3, 4, 4), weights={**stored, "times": np.array(2)})
    overridable(m, *stored)
    given = inputs_of(m.graph.node[0].attribute[0].g)
    folded = bnfold.fold(m, freeze_initializers=frozen)
    assert counts(folded).get("BatchNormalization", 0) == (0 if frozen else 1)
    assert inputs_of(folded.graph.node[0].attribute[0].g) == given
    same(m, folded)


def inputs_of(graph: Any) -> list[str]:
    return [value.name for value in graph.input]


def test_what_training_binds_stays():
    m = network()
    m.training_info.add().update_binding.add(key="bn.scale", value="c")
    assert counts(bnfold.fold(m, freeze_initializers=True)) == counts(m)


def test_a_module_has_none():
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match="freeze_initializers"):
        bnfold.fold(torch.nn.Linear(2, 2), freeze_initializers=True)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_with_them_as_inputs_is_compared_with_one_without(turned, frozen):
    m = network()
    pair = [m, bnfold.fold(m, freeze_initializers=True)]
    pair = pair[::-1] if turned else pair
    assert bnfold.verify(*pair, freeze_initializers=frozen).status == "pass"
    found = bnfold.verify(*pair, freeze_initializers=frozen, prove=False)
    assert found.status == "pass"
    assert bool(found.power) == (frozen or turned)  # else there are no weights to vary
    wrong = bnfold.fold(m, freeze_initializers=True)
    values = onnx.numpy_helper.to_array(wrong.graph.initializer[0]) * np.float32(1.01)
    wrong.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(values, wrong.graph.initializer[0].name)
    )
    assert bnfold.verify(m, wrong, freeze_initializers=frozen).status == "fail"


@pytest.mark.parametrize("listed, plans", [("c.w", 2), ("k", 1)])
def test_a_model_is_planned_again_only_where_it_may_tell(listed, plans, tmp_path, monkeypatch):
    """A row that no map reads may be an input: no reason names it, and nothing hangs on it."""
    nodes = conv("c", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "r", 4), op("Max", "r k", "y")
    m = overridable(model(*nodes, weights={"k": rand(4, 1, 1)}), listed)
    onnx.save(m, tmp_path / "m.onnx")
    seen, prepare = [], models.prepare
    monkeypatch.setattr(models, "prepare", lambda *a: seen.append(a) or prepare(*a))
    told = command("m.onnx", cwd=tmp_path).out
    assert ("1 affine operator would fold if nobody" in told) == (plans == 2) and len(seen) == plans


def test_the_command(tmp_path):
    """Without it one line says how many maps hang on them; with it the file is written anew."""
    m = network()
    m.graph.node.append(op("Mul", "y k", "z"))
    m.graph.initializer.append(onnx.numpy_helper.from_array(rand(4, 1, 1), "k"))
    m.graph.output[0].name = "z"
    onnx.save(m, tmp_path / "m.onnx")
    told = command("m.onnx", cwd=tmp_path).out
    assert "2 affine operators would fold if nobody overrides the initializers" in told
    assert "--freeze-initializers" in told
    told = command("m.onnx", "--freeze-initializers", "-o", "f.onnx", cwd=tmp_path).out
    assert "froze 6 initializers" in told and "verification: pass" in told and "hang" not in told
    assert inputs(onnx.load(tmp_path / "f.onnx")) == ["x"]
    (tmp_path / "pyproject.toml").write_text("[tool.bnfold]\nfreeze-initializers = true\n")
    assert command("m.onnx", "--check", cwd=tmp_path).code == 1
    assert command("m.onnx", "--check", "--no-config", cwd=tmp_path).code == 0
    assert command("f.onnx", "--check", cwd=tmp_path).code == 0
    command("m.onnx", "--in-place", cwd=tmp_path)
    assert inputs(onnx.load(tmp_path / "m.onnx")) == ["x"]
    refused(command("p.pt2", "--freeze-initializers", cwd=tmp_path), "leave out")
