"""The JSON that the command writes, held to the schemas that come with the package."""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Iterator
from importlib import resources
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold._command.cli import main
from bnfold._core import channels

from .. import graphs
from . import examples

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
from referencing import Registry, Resource  # noqa: E402  # comes with jsonschema

SCHEMAS = {
    f"bnfold.{name}/1": json.loads(
        (resources.files("bnfold") / "schemas" / f"{name}-1.json").read_text(encoding="utf-8")
    )
    for name in ("report", "comparison", "proof", "check")
}


LATER = {"outputs", "proof", "timing"}
"""What a document need not have: it came later, or an option has to ask for it."""


def validator(document: Any) -> Any:
    named = [(schema["$id"], Resource.from_contents(schema)) for schema in SCHEMAS.values()]
    registry = Registry().with_resources(named)
    return jsonschema.Draft202012Validator(SCHEMAS[document["schema"]], registry=registry)


def refuse_constants(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def ran(code: int, *args: Any, factor: float = 1.0) -> Any:
    """What the command prints as JSON, run in this process for there are many runs; with
    ``factor``, by a fold that makes every weight so many times too large.
    """
    right = channels.scaled

    def wrong(weight: Any, *rest: Any) -> Any:
        folded = right(weight, *rest)
        return folded * folded.dtype.type(factor)

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        if factor != 1.0:
            patch.setattr(channels, "scaled", wrong)
        patch.setattr("sys.stdout", out)
        with pytest.raises(SystemExit) as end:
            main.main([str(arg) for arg in args], "bnfold")
    assert end.value.code == code, out.getvalue()
    text = out.getvalue()
    return json.loads(text, parse_constant=refuse_constants) if text.startswith("{") else None


def nested() -> onnx.ModelProto:
    """A fold in a body and one that stays there."""
    branches = {
        name: onnx.helper.make_graph(
            [
                onnx.helper.make_node("Conv", ["x", "w"], [f"{name}.c"], name="conv"),
                graphs.bn("bn", f"{name}.c", f"{name}.y", 3)[0],
            ],
            name,
            [],
            [onnx.helper.make_tensor_value_info(f"{name}.y", onnx.TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    }
    branch = onnx.helper.make_node(
        "If", ["yes"], ["y"], then_branch=branches["then"], else_branch=branches["else"]
    )
    weights = graphs.bn("bn", "c", "y", 3)[1]
    return graphs.model(
        branch, weights={"yes": np.array(True), "w": graphs.rand(3, 3, 1, 1), **weights}
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What real runs wrote, by a name for the kind of run."""
    folder = tmp_path_factory.mktemp("schema")
    model = examples.save(examples.foldable(), folder / "m.onnx")
    others = {
        name: examples.save(getattr(examples, name)(), folder / f"{name}.onnx")
        for name in ("settled", "strange", "crossing", "hiding", "endless", "unshaped")
    }
    inside = examples.save(nested(), folder / "nested.onnx")
    apart = folder / "apart"
    external = examples.save(examples.foldable(), apart / "m.onnx", conv1_w="one.bin")
    np.savez(folder / "nan.npz", x=np.full((2, 3, 8, 8), np.nan, np.float32))
    wrong = folder / "wrong.onnx"
    ran(0, model, "-o", wrong, "--no-verify", factor=1.01)
    named = folder / "named.onnx"
    renamed = onnx.load(model)
    renamed.graph.output[0].name = renamed.graph.node[-1].output[0] = "z"
    renamed.graph.output.add(name="c1")
    onnx.save(renamed, named)

    def run(code: int, *args: Any, factor: float = 1.0) -> Any:
        return ran(code, *args, "--output-format", "json", factor=factor)

    return {
        "pass": run(0, model, "-o", folder / "out.onnx"),
        "fail": run(1, model, factor=1.01),
        "infinite": run(1, model, factor=float("inf")),
        "no number": run(0, model, "--inputs", folder / "nan.npz"),
        "no tolerance": run(1, model, "--atol", "0"),
        "inconclusive": run(3, others["strange"], "--no-prove"),
        "time is up": run(0, others["endless"], "--timeout", "0.3"),
        "unchanged": run(0, others["settled"]),
        "skipped": run(0, model, "--no-verify"),
        "check": run(1, model, "--check"),
        "check of several": run(1, model, others["settled"], "--check"),
        "check of one that is none": run(2, model, folder / "nan.npz", "--check"),
        "check settled": run(0, others["settled"], "--check"),
        "crossing": run(0, others["crossing"]),
        "unchecked": run(0, others["unshaped"]),
        "timed": run(0, model, "--time"),
        "compared timed": run(0, "verify", model, folder / "out.onnx", "--time"),
        "not timed": run(1, "verify", model, wrong, "--time"),
        "provider": run(3, model, "--provider", "cpu,cuda"),
        "power": run(0, others["hiding"], "--power"),
        "nested": run(0, inside),
        "equalized": run(0, model, "--equalize"),
        "left behind": run(0, external, "--in-place"),
        "compared": run(0, "verify", model, folder / "out.onnx", "--bisect"),
        "compared fail": run(1, "verify", model, wrong),
        "compared named": run(1, "verify", model, named),
        "compared power": run(0, "verify", others["hiding"], others["hiding"], "--power"),
        "proved": run(0, "verify", model, folder / "out.onnx", "--prove"),
        "refuted": run(1, "verify", model, wrong, "--prove"),
        "not proved": run(3, "verify", model, others["strange"], "--prove"),
        "compared strange": run(0, "verify", others["strange"], others["strange"]),
        "compared alone": run(3, "verify", others["strange"], others["strange"], "--no-prove"),
    }


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name):
    schema = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"] == {"const": name}


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object within a schema."""
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from parts(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from parts(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_it_lets_nothing_else_through(name):
    """Objects have all of their members and no other; those by operator type have numbers.

    Members that came later are not asked for.
    """
    objects = [part for part in parts(SCHEMAS[name]) if part.get("type") == "object"]
    assert len(objects) >= 2
    for part in objects:
        if "properties" not in part:
            assert part["additionalProperties"]["type"] == "integer"
            continue
        assert part["additionalProperties"] is False
        assert {*part["properties"]} - {*part["required"]} <= LATER
        assert {*part["required"]} <= {*part["properties"]}


def test_what_both_describe_they_describe_alike():
    report, comparison = SCHEMAS["bnfold.report/1"], SCHEMAS["bnfold.comparison/1"]
    for name, definition in comparison["$defs"].items():
        assert report["$defs"][name] == definition
    own = {"schema", "bnfold", "original", "folded"}
    properties = {k: v for k, v in comparison["properties"].items() if k not in own}
    assert properties == report["$defs"]["end_to_end"]["properties"]


def test_what_is_written_is_what_the_schema_says(written):
    for name, document in written.items():
        errors = [error.message for error in validator(document).iter_errors(document)]
        assert not errors, name


def test_the_runs_show_what_there_is(written):
    """Every member of the schemas has been seen filled, and every alternative."""
    text = json.dumps(written)
    for status in ("pass", "fail", "inconclusive", "unchanged", "skipped"):
        assert f'"status": "{status}"' in text
    ends = [d["verification"]["end_to_end"] for d in written.values() if "verification" in d]
    ends = [*filter(None, ends), *(d for d in written.values() if "checks" in d)]
    assert None in [d["verification"]["end_to_end"] for d in written.values() if "folds" in d]
    assert any(end["divergence"] for end in ends)
    assert any(check["note"] for end in ends for check in end["checks"])
    figures = {
        type(value) for end in ends for check in end["checks"] for value in check.values()
    } | {type(planted["ratio"]) for end in ends for planted in end["power"]}
    assert {float, str, type(None)} <= figures
    assert any(check["ratio"] == "inf" for end in ends for check in end["checks"])
    assert {planted["noticed"] for end in ends for planted in end["power"]} == {True, False}
    assert {p["provider"] for end in ends for p in end["providers"]} == {"cpu", "cuda"}
    certificates = [c for d in written.values() if "folds" in d for c in _certificates(d)]
    assert {c["ulps"] is None for c in certificates} == {True, False}
    assert {c["holds"] for c in certificates} == {True, False}
    assert {c["unchecked"] == "" for c in certificates} == {True, False}
    assert written["left behind"]["left_behind"]
    assert any(fold["graph"] for fold in written["nested"]["folds"])


def _certificates(document: Any) -> list[Any]:
    return document["verification"]["certificates"]


def test_a_document_of_wrong_types_is_told(written):
    """Each value replaced by one of another kind, added or left out; a place that has the same kind
    of value in several documents in one of them.
    """
    seen: set[Any] = set()
    for document in written.values():
        check = validator(document)
        if not check.is_valid(document):
            pytest.fail("the document itself is not valid")
        for spoiled, what in _spoiled(document, seen):
            assert not check.is_valid(spoiled), what


def _spoiled(document: Any, seen: set[Any]) -> Iterator[tuple[Any, str]]:
    """Copies of a document with one thing wrong; of a list the first member stands for all."""
    for path, kind in _paths(document):
        place = (document["schema"], path, kind)
        if place in seen:
            continue
        seen.add(place)
        for change in ("kind", "lost", "more"):
            if change == "lost" and path[-1] in LATER:
                continue
            made = copy.deepcopy(document)
            holder = made
            for step in path[:-1]:
                holder = holder[step]
            value = holder[path[-1]]
            if change == "kind":
                holder[path[-1]] = 1.5 if isinstance(value, list) else [value]
            elif change == "lost" and isinstance(holder, dict) and "operators" not in path[:-1]:
                del holder[path[-1]]
            elif change == "more" and isinstance(value, dict) and "operators" not in path:
                value["more"] = "of it"
            else:
                continue
            yield made, f"{change} {path}"


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], type]]:
    members = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, inner in members:
        yield (*path, key), type(inner)
        if isinstance(inner, (dict, list)):
            yield from _paths(inner, (*path, key))


def test_the_codes_of_all_reasons_are_of_the_form_that_is_told():
    from bnfold._core.reasons import CODES

    kept = {"$ref": "#/$defs/kept/properties/code", "$defs": SCHEMAS["bnfold.report/1"]["$defs"]}
    for code in CODES:
        jsonschema.validate(code, kept)
    for wrong in ("", "Zero-Padding", "zero padding", "-x"):
        assert not jsonschema.Draft202012Validator(kept).is_valid(wrong)


def test_the_report_of_a_program_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    torch.export.save(torch.export.export(net, (torch.randn(2, 3, 8, 8),)), tmp_path / "m.pt2")
    ran(0, tmp_path / "m.pt2", "--report", tmp_path / "r.json")
    document = json.loads((tmp_path / "r.json").read_text())
    validator(document).validate(document)
