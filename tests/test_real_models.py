"""Real models through the real command: what goes, what stays and why, and the verdict.

That nothing else in them changes, byte by byte, is in test_fidelity.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, numpy_helper

import bnfold
from bnfold._onnx.files.load import load_model

from . import zoo
from .cli.command import bnfold as run_command
from .graphs import counts, done, run, valid

# Operators by type before and after, and the verdict of the command.
FOLDED: dict[str, tuple[str, dict[str, tuple[int, int]]]] = {
    "digits": ("pass", {"BatchNormalization": (6, 0)}),
    "cls": ("pass", {"BatchNormalization": (27, 0), "Add": (5, 0)}),
    "det": (
        "pass",
        {"BatchNormalization": (3, 0), "Add": (117, 25), "Mul": (86, 34), "Conv": (62, 61)},
    ),
    "rec": ("pass", {"BatchNormalization": (6, 0), "Add": (112, 39), "Mul": (100, 42)}),
    "light-resnet50": ("pass", {"BatchNormalization": (53, 0)}),
    "light-shufflenet": ("pass", {"BatchNormalization": (49, 0)}),
    # With weights of 0.02 everywhere, errors of 1 % in the first layers end below the spacing of
    # the output: no run can tell, but the proof does.
    "light-inception_v2": (
        "pass",
        {"BatchNormalization": (69, 0), "Mul": (69, 0), "Add": (69, 0)},
    ),
    "light-densenet121": (
        "pass",
        {"BatchNormalization": (121, 0), "Mul": (121, 0), "Add": (121, 62)},
    ),
    "drawn-resnet50": ("pass", {"BatchNormalization": (53, 0)}),
    "drawn-shufflenet": ("pass", {"BatchNormalization": (49, 0)}),
    "drawn-inception_v2": (
        "pass",
        {"BatchNormalization": (69, 0), "Mul": (69, 0), "Add": (69, 0)},
    ),
    "drawn-densenet121": (
        "pass",
        {"BatchNormalization": (121, 0), "Mul": (121, 0), "Add": (121, 62)},
    ),
}
# With --slow alone: seconds each. Of an architecture and its two kinds of weights, what folds is
# the same, and is looked at in the light one, which is not drawn first.
LARGE = ("light-resnet50", "light-densenet121", "light-inception_v2")
AGAIN = ("drawn-resnet50", "drawn-inception_v2", "drawn-densenet121")
UNCHANGED = (*zoo.SILERO, *(name for name in zoo.LIGHT if name not in FOLDED))
PRODUCTS = ("MatMul", "Gemm")
EXIT = {"pass": 0, "unchanged": 0, "fail": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Ran:
    """One run of the command."""

    source: Path
    output: Path
    code: int
    said: str
    report: dict[str, Any]


def command(source: Path, folder: Path, *options: str) -> Ran:
    output, report = folder / "folded.onnx", folder / "report.json"
    arguments = [source, "-o", output, "--report", report, *options]
    done = run_command(*arguments)
    assert report.exists(), done.err
    document = json.loads(report.read_text(encoding="utf-8"))
    return Ran(source, output, done.code, done.out, document)


@dataclass(frozen=True)
class Pair:
    """A model, its folded form, and the plan."""

    source: Path
    before: ModelProto
    after: ModelProto
    plan: bnfold.Plan


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """A model's fold, once for all tests."""
    known: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in known:
            source = zoo.write(name, tmp_path_factory.mktemp(name))
            once = done(load_model(source), source.parent)
            known[name] = Pair(source, onnx.load(source), once.folded, once.plan)
        return known[name]

    return get


# --- verdicts ----------------------------------------------------------------------------------


def folded_models(*slow: str) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in FOLDED]


@pytest.mark.parametrize("name", folded_models(*LARGE, *AGAIN))
def test_command_folds_and_verifies(name, pair, tmp_path):
    folded, (status, expected) = pair(name), FOLDED[name]
    done = command(folded.source, tmp_path)
    verification = done.report["verification"]
    certificates = verification["certificates"]
    assert [c for c in certificates if not c["holds"] and not c["unchecked"]] == []
    assert sum(c["holds"] for c in certificates) > 0.9 * len(certificates)
    assert verification["status"] == status, done.said
    assert done.code == EXIT[status]
    as_planned = onnx.load(done.output) == folded.after
    assert as_planned
    written = done.report["operators"]
    assert {op: (written["before"].get(op, 0), written["after"].get(op, 0)) for op in expected} == (
        expected
    )
    assert done.report["kept"] == folded.plan.to_dict()["kept"]
    if valid(onnx.load(done.source)):
        onnx.checker.check_model(onnx.load(done.output), full_check=True)
    if status == "pass":
        checks = verification["end_to_end"]["checks"]
        assert {c["output"] for c in checks if c["status"] == "pass"} == {
            o.name for o in onnx.load(done.output).graph.output
        }


@pytest.mark.parametrize("name", UNCHANGED)
def test_model_with_nothing_to_fold_comes_out_byte_by_byte(name, tmp_path):
    done = command(zoo.path(name), tmp_path)
    assert done.code == 0, done.said
    assert done.report["verification"]["status"] == "unchanged"
    assert done.report["folds"] == []
    assert done.output.read_bytes() == done.source.read_bytes()


def test_digits_on_the_images_that_come_with_it(tmp_path):
    images = zoo.path("digits").with_suffix(".npz")
    done = command(zoo.path("digits"), tmp_path, "--inputs", str(images))
    assert done.code == 0, done.said
    with np.load(images) as stored:
        feeds = {name: stored[name] for name in stored.files if name == "image"}
    before, after = (run(onnx.load(p), feeds)[0] for p in (done.source, done.output))
    assert len({*before.argmax(axis=1)}) > 1
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


# --- what is gone ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", folded_models(*AGAIN))
def test_operators_before_and_after(name, pair):
    before, after = (counts(model) for model in (pair(name).before, pair(name).after))
    expected = FOLDED[name][1]
    assert {op: (before.get(op, 0), after.get(op, 0)) for op in expected} == expected
    # A MatMul may become a Gemm, and nothing else another operator.
    assert not [op for op, count in after.items() if count > before.get(op, 0) and op != "Gemm"]
    assert sum(after.get(op, 0) for op in PRODUCTS) <= sum(before.get(op, 0) for op in PRODUCTS)
    assert "Conv" in expected or after["Conv"] == before["Conv"]


def constants_of(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of what no input can change: initializers, and what nodes make of those alone."""
    graph = model.graph
    open_to_callers = {i.name for i in graph.input} if model.ir_version >= 4 else set()
    values = {
        t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name not in open_to_callers
    }
    for node in graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "ConstantOfShape" and node.input[0] in values:
            values[node.output[0]] = np.zeros(values[node.input[0]], np.int8)
        elif node.op_type == "Identity" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
        elif node.op_type == "Reshape" and {*node.input} <= values.keys():
            values[node.output[0]] = values[node.input[0]].reshape(values[node.input[1]])
        elif node.op_type == "Unsqueeze" and node.input[0] in values:
            axes = tuple(node.attribute[0].ints)
            values[node.output[0]] = np.expand_dims(values[node.input[0]], axes)
    return {name: value.shape for name, value in values.items()}


def affine_behind_conv(model: ModelProto) -> Iterator[tuple[NodeProto, NodeProto]]:
    """Each BatchNormalization, and each Mul, Add, Sub and Div by a constant of one number or one
    per channel, that alone reads what a Conv or ConvTranspose computes.
    """
    graph, constants = model.graph, constants_of(model)
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    outputs = {o.name for o in graph.output}

    def linear(name: str) -> NodeProto | None:
        while name in makers and readers[name] == 1 and name not in outputs:
            node = makers[name]
            if node.op_type in ("Conv", "ConvTranspose"):
                return node
            if node.op_type not in ("Identity", "Dropout"):
                return None
            name = node.input[0]
        return None

    for node in graph.node:
        if node.op_type == "BatchNormalization":
            if found := linear(node.input[0]):
                yield node, found
        elif node.op_type in ("Mul", "Add", "Sub", "Div"):
            for data, other in ((0, 1), (1, 0)):
                found = linear(node.input[data])
                shape = constants.get(node.input[other])
                if found is None or shape is None or (node.op_type == "Div" and data == 1):
                    continue
                rank = len(constants[found.input[1]])
                along = (1,) * (rank - len(shape)) + shape
                if len(along) == rank and all(n == 1 for k, n in enumerate(along) if k != 1):
                    yield node, found


@pytest.mark.parametrize("name", folded_models(*AGAIN))
def test_no_affine_operator_is_left_behind_a_convolution(name, pair):
    before, after = pair(name).before, pair(name).after
    kinds = Counter((node.op_type, conv.op_type) for node, conv in affine_behind_conv(before))
    assert kinds, "a search that finds nothing ahead of the fold shows nothing behind it"
    if name in ("det", "rec"):
        assert kinds["Add", "Conv"] >= 25
    if name == "det":
        assert kinds["Add", "ConvTranspose"] == 2
    if name == "digits":
        assert kinds["BatchNormalization", "ConvTranspose"] == 1
    assert [f"{n.op_type} {n.name} behind {c.name}" for n, c in affine_behind_conv(after)] == []


# --- what stays --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["light-densenet121", pytest.param("drawn-densenet121", marks=pytest.mark.slow)]
)
def test_every_batchnorm_that_stays_is_explained(name, pair):
    """DenseNet normalizes a concatenation that later layers read too, and poolings: the scale goes
    ahead, through the Relu, and the shift stays.
    """
    kept = [k for k in pair(name).plan.kept if k.op == "Add"]  # what is left of each
    assert Counter(k.code for k in kept) == {"shared-output": 62}
    assert all("(Relu): the shift does not pass" in k.message for k in kept)
    after = pair(name).after
    makers = {name: node.op_type for node in after.graph.node for name in node.output}
    left = [node for node in after.graph.node if node.op_type == "Add"]
    assert len(left) == len(kept)
    for node in left:
        assert makers[node.input[0]] in ("Concat", "AveragePool", "MaxPool", "Relu")


def test_character_table_comes_along(tmp_path):
    """A recognizer carries its characters in the metadata; without them it only says numbers."""
    source = zoo.path("rec")
    keys = (source.parent / "ppocr_keys_v5.txt").read_text(encoding="utf-8")
    model = onnx.load(source)
    for key, value in (("character", keys), ("names", "{0: 'text'}"), ("character", "again")):
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.doc_string, model.domain = "paddle", "a recognizer", "org.example"
    onnx.save(model, tmp_path / "rec.onnx")
    done = command(tmp_path / "rec.onnx", tmp_path)
    assert done.code == 0, done.said
    after = onnx.load(done.output)
    assert [p.SerializeToString() for p in after.metadata_props] == [
        p.SerializeToString() for p in model.metadata_props
    ]
    for field in ("producer_name", "doc_string", "domain", "ir_version"):
        assert getattr(after, field) == getattr(model, field)
    assert after.opset_import == model.opset_import
    assert after.graph.input == model.graph.input
    assert after.graph.output == model.graph.output
