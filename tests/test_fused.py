"""GELUs and normalizations written out stay whole, where their parts could be carried away."""

from __future__ import annotations

import math

import numpy as np
import pytest

import bnfold

from .graphs import codes, conv, counts, model, op, optimized, rand

ROOT = math.sqrt(2)


def gelu(order, half=0.5, inside=ROOT):
    """A GELU of c between two convolutions; ``order`` says where the half is."""
    constants = {"half": np.float32(half), "one": np.float32(1), "root": np.float32(inside)}
    head = [
        conv("first", "x", "c", (4, 3, 1, 1)),
        op("Div", "c root", "d", name="root_"),
        op("Erf", "d", "e"),
        op("Add", "e one", "f", name="one_"),
    ]
    tails = {
        "last": [op("Mul", "c f", "g"), op("Mul", "g half", "h", name="half_")],
        "first": [op("Mul", "c half", "g", name="half_"), op("Mul", "g f", "h")],
        "inner": [op("Mul", "f half", "g", name="half_"), op("Mul", "c g", "h")],
    }
    return model(*head, *tails[order], conv("second", "h", "y", (4, 4, 1, 1)), weights=constants)


def test_the_runtime_finds_a_gelu_by_its_parts(tmp_path):
    """The reason for it all: onnxruntime's own optimizer makes one operator of it."""
    whole = optimized(bnfold.fold(gelu("last")), tmp_path / "optimized.onnx")
    ops = {node.op_type for node in whole.graph.node}
    assert ops & {"Gelu", "BiasGelu"}
    assert "Erf" not in ops


@pytest.mark.parametrize("order", ["last", "first", "inner"])
def test_a_gelu_stays_whole(order):
    m = gelu(order)
    assert codes(m) == dict.fromkeys(("root_", "one_", "half_"), "fused-operator")
    assert counts(bnfold.fold(m)) == counts(m)


def test_an_operator_of_another_domain_is_no_part_of_a_gelu():
    """Its name is a Mul's. No runtime would run what is written here as one operator."""
    m = gelu("last")
    next(node for node in m.graph.node if node.name == "half_").domain = "my"
    m.opset_import.add(domain="my", version=1)
    assert "fused-operator" not in codes(m).values()


@pytest.mark.parametrize("changed", [{"half": 0.6}, {"inside": 1.5}])
def test_another_function_is_no_gelu(changed):
    m = gelu("last", **changed)
    assert "fused-operator" not in codes(m).values()
    after = bnfold.fold(m)
    assert counts(after)["Mul"] == 1
    assert bnfold.verify(m, after).status == "pass"


def test_a_gelu_by_tanh():
    numbers = {
        "half": np.float32(0.5),
        "one": np.float32(1),
        "three": np.float32(3),
        "small": np.float32(0.044715),
        "root": np.float32(math.sqrt(2 / math.pi)),
    }
    m = model(
        conv("first", "x", "c", (4, 3, 1, 1)),
        op("Pow", "c three", "p"),
        op("Mul", "p small", "q", name="small_"),
        op("Add", "c q", "r"),
        op("Mul", "r root", "s", name="root_"),
        op("Tanh", "s", "t"),
        op("Add", "t one", "u", name="one_"),
        op("Mul", "c half", "v", name="half_"),
        op("Mul", "v u", "h"),
        conv("second", "h", "y", (4, 4, 1, 1)),
        weights=numbers,
    )
    parts = ("small_", "root_", "one_", "half_")
    assert codes(m) == dict.fromkeys(parts, "fused-operator")


def normalization(axis):
    numbers = {
        "two": np.float32(2),
        "epsilon": np.float32(1e-5),
        "gamma": rand(8) if axis == -1 else rand(5, 1),
        "beta": rand(8) if axis == -1 else rand(5, 1),
        "w": rand(8, 6),
        "b": rand(6),
    }
    return model(
        op("ReduceMean", "x", "m", axes=[axis]),
        op("Sub", "x m", "d"),
        op("Pow", "d two", "p"),
        op("ReduceMean", "p", "v", axes=[axis]),
        op("Add", "v epsilon", "e", name="epsilon_"),
        op("Sqrt", "e", "s"),
        op("Div", "d s", "n"),
        op("Mul", "n gamma", "g", name="gamma_"),
        op("Add", "g beta", "h", name="beta_"),
        op("MatMul", "h w", "k", name="mm"),
        op("Add", "k b", "y", name="bias"),
        x=(3, 5, 8),
        weights=numbers,
    )


def test_a_layer_normalization_stays_whole():
    found = codes(normalization(-1))
    assert {found.pop(part) for part in ("epsilon_", "gamma_", "beta_")} == {"fused-operator"}
    assert counts(bnfold.fold(normalization(-1))) == counts(normalization(-1))


def test_along_another_axis_runtimes_do_not_fuse_it():
    assert "fused-operator" not in codes(normalization(1)).values()
