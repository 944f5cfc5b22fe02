"""A run as tables of Markdown, to paste into a pull request; GitHub's step summary shows them.

Names and shapes come from a model and are escaped: no name becomes a link or a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._core.result import affine_counts, changed_operators, counted, fold_lines
from bnfold._judge.proof_text import proof_lines
from bnfold._judge.timing import milliseconds
from bnfold._report.escapes import cell
from bnfold._report.text import VERBS, count_certificates, size_in_words

if TYPE_CHECKING:
    from onnx import ModelProto, TypeProto

    from bnfold._core.result import Plan
    from bnfold._judge.verdict import EndToEnd
    from bnfold._pipeline.outcome import Outcome
    from bnfold._relation.proof import Proof
    from bnfold._report.findings import Finding

_MOST = 8
"""How many inputs, outputs or reasons stand in a cell."""
_ROWS = 100
"""How many operators that stay are listed."""
_SEQUENCES = {"sequence_type": "sequence", "optional_type": "optional", "map_type": "map"}
_NOT_TENSORS = {"sparse_tensor_type": "sparse tensor", "opaque_type": "opaque", **_SEQUENCES}


@dataclass(frozen=True)
class Ports:
    """What a model reads and puts out: each one with its type and shape, in words."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def ports_of(path: Path) -> Ports | None:
    """The inputs and outputs of a file of ONNX; None for a program of PyTorch, and for a file that
    cannot be read any more.
    """
    from bnfold._errors import UsageError
    from bnfold._onnx.files.load import load_model

    if path.suffix == ".pt2":
        return None
    try:
        model = load_model(path, lean=True, follow_links=True)
    except UsageError:
        return None
    return _ports(model)


def _ports(model: ModelProto) -> Ports:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in stored]
    return Ports(
        tuple(f"{one.name}: {_typed(one.type)}" for one in inputs),
        tuple(f"{one.name}: {_typed(one.type)}" for one in model.graph.output),
    )


def _typed(type_: TypeProto) -> str:
    """A type and shape in words: ``float32[1, 3, H, W]``."""
    kind = type_.WhichOneof("value")
    if kind != "tensor_type":
        return _NOT_TENSORS.get(kind or "", "of unknown type")
    from onnx import TensorProto

    tensor = type_.tensor_type
    known = tensor.elem_type in TensorProto.DataType.values()
    name = TensorProto.DataType.Name(tensor.elem_type).lower() if known else "unknown"
    name = {"float": "float32", "double": "float64"}.get(name, name)
    if not tensor.HasField("shape"):
        return f"{name}, of unknown rank"
    sizes = [
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    ]
    return f"{name}[{', '.join(sizes)}]"


def of_outcome(
    outcome: Outcome, status: str, ports: Ports | None = None, verified: bool = True
) -> Iterator[str]:
    """Yield the tables of a fold; ``verified``: with what its verdict says."""
    plan = outcome.plan
    yield f"### bnfold: {cell(str(outcome.model))}: {cell(status)}"
    if plan.folds:
        yield from ("", "| | before | after |", "|---|---:|---:|")
        sizes = ("file size", size_in_words(outcome.size_before), size_in_words(outcome.size_after))
        for name, before, after in (*changed_operators(plan), sizes, *_times(outcome)):
            yield f"| {cell(name)} | {before} | {after} |"
    rows = [*_interface(ports)]
    would = outcome.output is None
    verbs = [f"would {now}" if would else done for now, done in VERBS]
    told = "; ".join(fold_lines(plan, *verbs)) or "nothing to fold"
    rows.append(("folds", cell(told)))
    if stays := _stays(plan):
        rows.append(("stays", stays))
    if verified:
        rows += _judged(outcome)
    yield from _table(rows)


def of_comparison(
    original: str, folded: str, result: EndToEnd, ports: Ports | None = None
) -> Iterator[str]:
    """Yield the tables of a comparison of two models."""
    yield f"### bnfold: {cell(original)} and {cell(folded)}: {result.status}"
    yield from _table([*_interface(ports), *_compared(result)])


def of_proof(original: str, folded: str, proof: Proof) -> Iterator[str]:
    """Yield the tables of a proof from the weights of two models."""
    told = "; ".join(cell(line) for line in proof_lines(proof, False))
    yield f"### bnfold: {cell(original)} and {cell(folded)}: {proof.status}"
    yield from _table([("proof", told)])


def of_findings(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield a table of findings: what was asked, and what came out."""
    if findings:
        yield from ("", "| check | result | |", "|---|---|---|")
    for finding in findings[:_ROWS]:
        yield f"| {cell(finding.name)} | {finding.status} | {cell(finding.message)} |"
    if len(findings) > _ROWS:
        yield f"| and {len(findings) - _ROWS} more | | |"


def of_kept(plan: Plan) -> Iterator[str]:
    """Yield a table of the operators that stay; biases of linear ones are left out."""
    stays = [kept for kept in plan.kept if not kept.is_bias]
    if stays:
        yield from ("", "| stays | reason | |", "|---|---|---|")
    for kept in stays[:_ROWS]:
        yield f"| {cell(kept.node)} | {kept.code} | {cell(kept.message)} |"
    if len(stays) > _ROWS:
        yield f"| and {len(stays) - _ROWS} more | | |"


def _table(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield a table of two columns without a header; the cells are escaped already."""
    yield from ("", "| | |", "|---|---|")
    for name, text in rows:
        yield f"| {name} | {text} |"


def _interface(ports: Ports | None) -> Iterator[tuple[str, str]]:
    """Yield rows about what a model reads and puts out."""
    if ports is not None:
        yield "inputs", _listed(ports.inputs)
        yield "outputs", _listed(ports.outputs)


def _listed(names: Sequence[str]) -> str:
    """Some names in one cell."""
    more = f"; and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return "; ".join(map(cell, names[:_MOST])) + more


def _stays(plan: Plan) -> str:
    """How many affine operators stay, by reason."""
    _, count = affine_counts(plan)
    codes = Counter(k.code for k in plan.kept if k.kind == "map" and not k.is_bias)
    listed = ", ".join(f"{number} {code}" for code, number in codes.most_common())
    return f"{counted(count, 'affine operator')}: {listed}" if count else ""


def _times(outcome: Outcome) -> Iterator[tuple[str, str, str]]:
    """Yield a row with the time of a run before and after, where that was measured."""
    found = outcome.verdict.end_to_end
    if found is not None and found.timing is not None and not found.timing.note:
        timing = found.timing
        yield "time of a run", milliseconds(timing.before), milliseconds(timing.after)


def _judged(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Yield rows about the verdict on a fold and what it rests on."""
    verdict = outcome.verdict
    if verdict.certificates:
        yield "certificates", count_certificates(verdict.certificates)
    if verdict.end_to_end is not None:
        yield from _compared(verdict.end_to_end, verdict.status)
    else:
        yield "verdict", verdict.status


def _compared(result: EndToEnd, status: str = "") -> Iterator[tuple[str, str]]:
    """Yield rows about a comparison: its verdict, its largest difference, and what is open."""
    yield "verdict", status or result.status
    if result.proof is not None:
        yield "proof", "; ".join(cell(line.strip()) for line in proof_lines(result.proof, False))
    measured = [check for check in result.checks if check.ratio is not None]
    if measured:
        worst = max(measured, key=lambda check: check.ratio or 0.0)
        yield (
            "largest difference",
            f"{worst.difference:.2e}, where {worst.tolerance:.2e} is allowed "
            f"(output {cell(worst.output)}, {counted(len(result.checks), 'comparison')})",
        )
    for deployed in result.providers:
        if deployed.note or deployed.status != "pass":
            yield f"on {cell(deployed.provider)}", cell(f"{deployed.status}; {deployed.note}")
    if result.timing is not None:
        yield "speed", cell(str(result.timing))
    for note in result.notes[:_MOST]:
        yield "note", cell(note)
