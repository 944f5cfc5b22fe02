"""Lets another tool simplify a folded file that is not in place yet, and judges what it makes.

Removing identities, shape arithmetic and dead operators is the work of onnxslim and onnxsim. They
are right most of the time. So each runs in a process of its own, what it makes is folded once more,
and it is taken only where it is seen to be the same function; otherwise the folded file stays.
"""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._errors import UsageError
from bnfold._judge.settings import Settings
from bnfold._onnx.files.load import load_model, understood
from bnfold._onnx.files.save import PendingFile, pending_file
from bnfold._onnx.fold import prepare
from bnfold._pipeline.outcome import Progress, Simplification
from bnfold._system import scratch, time_limit

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

    from bnfold._run.input_sets import InputSet

TOOLS = ("onnxslim", "onnxsim")
"""Those that can be used; the first one that is installed is."""

_SCRIPT = """
import sys
sys.path[:] = sys.argv.pop().split("\\n")
tool, source, target = sys.argv[1:]
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: it ends with whoever has started it
import onnx
if tool == "onnxslim":
    import onnxslim
    made = onnxslim.slim(onnx.load(source))
else:
    import onnxsim
    made, _ = onnxsim.simplify(onnx.load(source))
onnx.save(made, target)
"""


def simplifier() -> str:
    """The tool that is installed. Raises `UsageError` where none is."""
    found = next((name for name in TOOLS if importlib.util.find_spec(name) is not None), None)
    if found is None:
        raise UsageError("--simplify needs onnxslim or onnxsim: pip install 'bnfold[simplify]'")
    return found


@contextmanager
def simplified(
    draft: PendingFile,
    original: Path,
    verify: bool,
    inputs: list[InputSet] | None,
    settings: Settings,
    progress: Progress,
) -> Iterator[tuple[PendingFile, Simplification]]:
    """The draft of a folded file as the tool simplifies it, folded again; or the draft itself.

    The result is taken if it has fewer operators, the same inputs and outputs, and is seen to be
    the same function: it is proved or, with ``verify``, the comparison passes; and nothing says
    otherwise. What the tool loses of the model besides its graph is put back. ``original`` is the
    file that was folded. Raises `UsageError` as `pending_file` does.
    """
    name = simplifier()
    by = f"{name} {metadata.version(name)}"
    progress(f"simplifying with {name}")
    if draft.data:
        why = "its data lie in files of their own, which the tool would bring in"
        yield draft, Simplification(by, refused=why)
        return
    with scratch.beside(None) as folder:
        target = folder / "simplified.onnx"
        why = _run(name, draft.path, target)
        model = folded = None
        if not why:
            try:
                model, folded = load_model(target), load_model(draft.path)
                why = _restored(model, folded)
            except UsageError as error:
                why = f"what it makes cannot be read: {error}"
        if why or model is None or folded is None:
            yield draft, Simplification(by, refused=why)
            return
        with understood(model, original):
            before = _count(folded.graph)
            rewritten = prepare(model, folder, settings.equal_dims).apply()
            after = _count(model.graph)
        if after >= before:
            yield draft, Simplification(by, before, after)
            return
        with pending_file(
            model,
            rewritten,
            base_dir=folder,
            destination=draft.destination,
            original=original,
        ) as new:
            del model, folded
            from bnfold._pipeline.proving import objection  # imported late: few ask for it

            progress("proving that simplifying changes nothing")
            why, proof = objection(draft.path, new.path, verify, inputs, settings, progress)
            yield draft if why else new, Simplification(by, before, after, why, proof)


def _run(name: str, source: Path, target: Path) -> str:
    """Run a tool in a process of its own; why there is no result, "" if there is one."""
    left = time_limit.deadline() - time.monotonic()
    command = [sys.executable, "-c", _SCRIPT, name, str(source), str(target)]
    try:
        done = subprocess.run(
            [*command, "\n".join(filter(None, sys.path))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=left if math.isfinite(left) else None,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "time was up"
    if done.returncode < 0:
        return f"it crashed (signal {-done.returncode})"
    if done.returncode or not target.exists():
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return f"it failed: {lines[-1]}" if lines else "it made no file"
    return ""


def _restored(model: ModelProto, folded: ModelProto) -> str:
    """Give a model back what a tool has lost besides the graph; why it cannot stand for the other.

    Inputs and outputs have to be the same, and so their types and shapes. Training information and
    quantization notes know tensors by names that a tool may drop.
    """
    if folded.training_info or folded.graph.quantization_annotation:
        return "it would lose the model's training information or quantization notes"
    for kind in ("input", "output"):
        theirs, ours = getattr(model.graph, kind), getattr(folded.graph, kind)
        if [value.name for value in theirs] != [value.name for value in ours]:
            return f"it changes the {kind}s of the model"
        for there, here in zip(theirs, ours, strict=True):
            if clash := _clash(there.type, here.type):
                return f"{kind} {here.name} has {clash} then"
            there.CopyFrom(here)
    for held in ("metadata_props", "doc_string", "domain", "model_version", "producer_name"):
        model.ClearField(held)
        if held == "metadata_props":
            model.metadata_props.extend(folded.metadata_props)
        else:
            setattr(model, held, getattr(folded, held))
    model.producer_version = folded.producer_version
    model.ir_version = model.ir_version or folded.ir_version
    model.graph.name, model.graph.doc_string = folded.graph.name, folded.graph.doc_string
    return ""


def _clash(there: object, here: object) -> str:
    """What contradicts another type or shape, "" if nothing does."""
    theirs, ours = getattr(there, "tensor_type", None), getattr(here, "tensor_type", None)
    if theirs is None or ours is None:
        return ""
    if theirs.elem_type != ours.elem_type:
        return "another type"
    if not (theirs.HasField("shape") and ours.HasField("shape")):
        return ""
    sizes = [[dim.dim_value for dim in each.shape.dim] for each in (theirs, ours)]
    if not sizes[1]:  # Some exporters say so of a shape that they do not know; a run tells.
        return ""
    if len(sizes[0]) != len(sizes[1]):
        return f"{len(sizes[0])} axes in place of {len(sizes[1])}"
    if any(a and b and a != b for a, b in zip(*sizes, strict=True)):
        return f"the shape {sizes[0]} in place of {sizes[1]}"
    return ""


def _count(graph: GraphProto) -> int:
    """How many operators a graph has, with those of bodies; Constants are none."""
    count = 0
    for node in graph.node:
        count += node.op_type != "Constant"
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            count += sum(map(_count, bodies))
    return count
