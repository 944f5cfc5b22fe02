"""Small ONNX models, a line per node, and what must hold for every fold of every model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

import bnfold
from bnfold._onnx.fold import prepare
from bnfold._onnx.merge.merging import read
from bnfold._onnx.write.applied import Applied
from bnfold._proof.certificate import certify
from bnfold._proof.evidence import Certificate, Obstacle

from . import oracle

Array = Any
Piece = NodeProto | tuple[NodeProto, dict[str, Any]]

NEWEST = onnx.defs.onnx_opset_version()
FLOAT, DOUBLE, HALF, BF16 = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
)

_rng = np.random.default_rng(0)


def reseed(seed: int = 0) -> None:
    global _rng
    _rng = np.random.default_rng(seed)


def rand(*shape: int) -> Array:
    """Values of either sign, none near zero: a swapped, dropped or rolled parameter shows."""
    return (_rng.uniform(0.5, 1.5, shape) * _rng.choice([-1.0, 1.0], shape)).astype(np.float32)


def positive(*shape: int) -> Array:
    return _rng.uniform(0.5, 2.0, shape).astype(np.float32)


# --- nodes -------------------------------------------------------------------------------------


def op(kind: str, inputs: str, outputs: str, **attrs: Any) -> NodeProto:
    """``op("Conv", "x W _ ", "y", group=2)``; ``_`` is an input left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    attrs.setdefault("name", outputs.split()[0] + "_" + kind.lower() if kind else "")
    return helper.make_node(kind, names, outputs.split(), **attrs)


def conv(name: str, x: str, y: str, w: Sequence[int], bias: Any = True, **attrs: Any) -> Piece:
    """``w``: the weight's shape [Cout, Cin/g, k…]; bias True, False or "" (given as empty)."""
    params = {f"{name}.w": rand(*w) / np.float32(np.sqrt(np.prod(w[1:])))}
    inputs = f"{x} {name}.w"
    if bias is True:
        params[f"{name}.b"] = rand(w[0])
        inputs += f" {name}.b"
    elif bias == "":
        inputs += " _"
    return op("Conv", inputs, y, name=name, **attrs), params


def conv_transpose(
    name: str, x: str, y: str, w: Sequence[int], bias: bool = True, **attrs: Any
) -> Piece:
    """``w``: the weight's shape [Cin, Cout/g, k…]."""
    params = {f"{name}.w": rand(*w) / np.float32(np.sqrt(w[0]))}
    inputs = f"{x} {name}.w"
    if bias:
        params[f"{name}.b"] = rand(w[1] * attrs.get("group", 1))
        inputs += f" {name}.b"
    return op("ConvTranspose", inputs, y, name=name, **attrs), params


def bn(name: str, x: str, y: str, c: int, **attrs: Any) -> Piece:
    params = {
        f"{name}.scale": rand(c),
        f"{name}.bias": rand(c),
        f"{name}.mean": rand(c),
        f"{name}.var": positive(c),
    }
    attrs.setdefault("epsilon", 0.01)
    inputs = f"{x} {name}.scale {name}.bias {name}.mean {name}.var"
    return op("BatchNormalization", inputs, y, name=name, **attrs), params


def const(kind: str, x: str, y: str, value: Any, *, left: bool = False, **attrs: Any) -> Piece:
    """A binary operator with a constant operand, on the right unless ``left``."""
    name = attrs.pop("name", y + "_" + kind.lower())
    inputs = f"{name}.k {x}" if left else f"{x} {name}.k"
    return op(kind, inputs, y, name=name, **attrs), {f"{name}.k": np.asarray(value)}


def tensor(value: Any, name: str, elem: int = FLOAT) -> TensorProto:
    """A stored constant; floating-point values take the model's element type."""
    if isinstance(value, TensorProto):
        return value
    value = np.asarray(value)
    if value.dtype == np.float32 and elem != FLOAT:
        value = value.astype(helper.tensor_dtype_to_np_dtype(elem))
    if value.dtype.name == "bfloat16":
        raw = value.view(np.uint16).tobytes()
        return helper.make_tensor(name, BF16, value.shape, raw, raw=True)
    return numpy_helper.from_array(value, name)


def model(
    *pieces: Piece,
    x: Mapping[str, Sequence[Any] | None] | Sequence[Any] = (2, 3, 8, 8),
    y: str = "y",
    weights: Mapping[str, Any] | None = None,
    opset: int = 17,
    ir: int | None = None,
    elem: int = FLOAT,
    functions: Iterable[FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
) -> ModelProto:
    """Inputs ``x`` (one shape, or shapes by name), outputs ``y`` (names), nodes in order."""
    inputs = dict(x) if isinstance(x, Mapping) else {"x": x}
    stored = dict(weights or {})
    nodes = []
    for piece in pieces:
        node, params = (piece, {}) if isinstance(piece, NodeProto) else piece
        nodes.append(node)
        stored |= {k: v for k, v in params.items() if k not in stored}
    used = set(_reads(nodes))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(k, elem, s) for k, s in inputs.items()],
        [helper.make_tensor_value_info(k, elem, None) for k in y.split()],
        [tensor(v, k, elem) for k, v in stored.items() if k in used or k in (weights or {})],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(d, v) for d, v in (domains or {}).items()]
    if ir is None:
        ir = min(helper.find_min_ir_version_for(imports, ignore_unknown=True), 13)
        ir = max(ir, 8)
    made = helper.make_model(graph, opset_imports=imports, functions=list(functions))
    made.ir_version = ir
    return typed(made)


def typed(made: ModelProto) -> ModelProto:
    """Give the outputs the types that shape inference finds, where it finds any."""
    try:
        known = {o.name: o for o in onnx.shape_inference.infer_shapes(made).graph.output}
    except Exception:
        return made
    for out in made.graph.output:
        if known[out.name].type.tensor_type.HasField("shape"):
            out.CopyFrom(known[out.name])
    return made


def valid(made: ModelProto) -> bool:
    try:
        onnx.checker.check_model(made, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def overridable(made: ModelProto, *names: str) -> ModelProto:
    """List initializers as graph inputs too, so that a caller may replace them."""
    for t in made.graph.initializer:
        if t.name in names:
            made.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    return made


def subgraph(*pieces: Piece, x: Mapping[str, Any] | None = None, y: str = "y") -> GraphProto:
    """A branch or body; the parameters of its nodes become its own initializers."""
    nodes, params = [], {}
    for piece in pieces:
        node, more = (piece, {}) if isinstance(piece, NodeProto) else piece
        nodes.append(node)
        params |= more

    def info(name: str, spec: Any) -> Any:
        elem, shape = (
            spec if isinstance(spec, tuple) and spec[:1] in ((7,), (9,)) else (FLOAT, spec)
        )
        return helper.make_tensor_value_info(name, elem, shape)

    return helper.make_graph(
        nodes,
        "body",
        [info(k, v) for k, v in (x or {}).items()],
        [info(k, (9, ()) if k.startswith("cond") else None) for k in y.split()],
        [tensor(v, k) for k, v in params.items()],
    )


# --- reading a model ---------------------------------------------------------------------------


def graphs(made: ModelProto) -> Iterator[tuple[Sequence[NodeProto], GraphProto | FunctionProto]]:
    """Every graph: the main one, subgraphs of any depth, function bodies and theirs."""

    def walk(holder: GraphProto | FunctionProto) -> Iterator[Any]:
        yield holder.node, holder
        for node in holder.node:
            for attr in node.attribute:
                if attr.type == AttributeProto.GRAPH:
                    yield from walk(attr.g)

    yield from walk(made.graph)
    for function in made.functions:
        yield from walk(function)


def _reads(nodes: Iterable[NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield from node.input
        for attr in node.attribute:
            if attr.type == AttributeProto.GRAPH:
                yield from _reads(attr.g.node)
                yield from (o.name for o in attr.g.output)


def counts(made: ModelProto) -> dict[str, int]:
    """Operators by type, subgraphs and function bodies included."""
    return dict(Counter(node.op_type for nodes, _ in graphs(made) for node in nodes))


def cost(made: ModelProto) -> tuple[int, int]:
    """Executed operators, and their work in passes: a BatchNormalization is a Mul and an Add, as a
    Scaler is.

    The operators of a function that is called count as often as it is called, by one that counts.
    """
    functions = {(f.domain, f.name, f.overload): f for f in made.functions}
    called = Counter((n.domain, n.op_type, n.overload) for nodes, _ in graphs(made) for n in nodes)

    def within(nodes: Iterable[NodeProto], depth: int = 0) -> Counter[str]:
        kinds: Counter[str] = Counter()
        for node in nodes:
            kinds[node.op_type] += 1
            function = functions.get((node.domain, node.op_type, node.overload))
            if function is not None and depth < 10:
                kinds += within(function.node, depth + 1)
            for attr in node.attribute:
                if attr.type == AttributeProto.GRAPH:
                    kinds += within(attr.g.node, depth)
        return kinds

    idle = [f for key, f in functions.items() if not called[key]]
    kinds = within(made.graph.node) + sum((within(f.node) for f in idle), Counter())
    kinds.pop("Constant", None)
    nodes = sum(kinds.values())
    return nodes, nodes + kinds.get("BatchNormalization", 0) + kinds.get("Scaler", 0)


def label(node: NodeProto) -> str:
    return node.name or f"{node.op_type} → {node.output[0]}"


def affine_nodes(made: ModelProto) -> list[str]:
    """Labels of every BatchNormalization and floating-point Mul/Add/Sub/Div by a constant."""
    found = []
    inputs = {i.name for i in made.graph.input} if made.ir_version >= 4 else set()

    def visit(holder: GraphProto | FunctionProto, outer: dict[str, int]) -> None:
        known = dict(outer)
        if isinstance(holder, GraphProto):
            for i in holder.input:
                known.pop(i.name, None)
            for t in holder.initializer:
                if holder is not made.graph or t.name not in inputs:
                    known[t.name] = t.data_type
            for s in holder.sparse_initializer:
                known[s.values.name] = s.values.data_type
        for node in holder.node:
            if node.op_type == "Constant":
                a = node.attribute[0]
                ints = ("value_int", "value_ints")
                known[node.output[0]] = (
                    a.t.data_type if a.name == "value" else 7 if a.name in ints else FLOAT
                )
                continue
            subgraphs = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
            real = [name in known for name in node.input if name]
            if real and all(real) and not subgraphs:
                for name in node.output:
                    known[name] = FLOAT
                continue
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "BatchNormalization":
                found.append(label(node))
            if node.op_type in ("Mul", "Add", "Sub", "Div") and len(node.input) == 2:
                kinds = [known.get(name) for name in node.input]
                constant = kinds[1] if node.op_type == "Div" else kinds[0] or kinds[1]
                if constant in oracle.ROUNDOFF:
                    found.append(label(node))
            for g in subgraphs:
                visit(g, known)

    visit(made.graph, {})
    for function in made.functions:
        visit(function, {})
    return found


def constants(made: ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}


def codes(made: ModelProto, **options: Any) -> dict[str, str]:
    """Reason code by node label."""
    return {k.node: k.code for k in bnfold.plan(made, **options).kept}


# --- running -----------------------------------------------------------------------------------


def feeds(made: ModelProto, seed: int = 0, sizes: int = 2) -> dict[str, Array]:
    """Random values for every true input; free dimensions take ``sizes``."""
    rng = np.random.default_rng(seed)
    stored = {t.name for t in made.graph.initializer}
    out = {}
    for info in made.graph.input:
        if info.name in stored:
            continue
        t = info.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else sizes for d in t.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(t.elem_type)
        if t.elem_type == TensorProto.BOOL:
            out[info.name] = np.ones(shape, bool)
        elif t.elem_type in oracle.ROUNDOFF:
            out[info.name] = rng.normal(size=shape).astype(dtype)
        else:
            out[info.name] = rng.integers(0, 3, shape).astype(dtype)
    return out


def run(
    made: ModelProto | str | Path, given: Mapping[str, Array], level: str = "DISABLE_ALL"
) -> list[Array]:
    """onnxruntime, with every optimization off unless a level is given."""
    return session(made, level).run(None, dict(given))


def session(
    made: ModelProto | str | Path, level: str = "DISABLE_ALL", saved: Path | None = None
) -> ort.InferenceSession:
    """A session of onnxruntime, which may save what its optimizations of a level have made."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    source = made.SerializeToString() if isinstance(made, ModelProto) else made
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def optimized(made: ModelProto, saved: Path, level: str = "ENABLE_ALL") -> ModelProto:
    """A model as onnxruntime saves it, once it has optimized it."""
    session(made, level, saved)
    return onnx.load(saved)


def _close(name: str, what: str, got: Array, want: Array, bound: Array) -> None:
    assert got.shape == want.shape, f"{name}: shape {got.shape}, not {want.shape} ({what})"
    got, want = got.astype(np.float64), want.astype(np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        ok = same | (np.abs(got - want) <= 2 * bound)
    if not ok.all():
        with np.errstate(invalid="ignore", divide="ignore"):
            worst = np.nanmax(np.where(ok, 0, np.abs(got - want) / bound))
        raise AssertionError(
            f"{name}: {(~ok).sum()} of {ok.size} off ({what}), by {worst:.3g} bounds"
        )


def assert_same(
    original: ModelProto,
    folded: ModelProto,
    given: Mapping[str, Array] | None = None,
    *,
    runtime: bool = True,
) -> None:
    """Equal in exact arithmetic but for the rounding of weights, and equal in onnxruntime."""
    sessions = [session(one) for one in (original, folded)] if runtime else []
    for seed in (0, 1):
        data = given or feeds(original, seed)
        exact, again = oracle.run(original, data), oracle.run(folded, data)
        infos = original.graph.output
        for info, want, got in zip(infos, exact, again, strict=True):
            bound = want.w if want.real else np.zeros(want.v.shape)
            _close(info.name, "float64 against float64", got.v, want.v, bound)
        if not runtime:
            continue
        first, second = (one.run(None, dict(data)) for one in sessions)
        for info, want, a, b in zip(infos, exact, first, second, strict=True):
            assert a.dtype == b.dtype
            bound = want.e if want.real else np.zeros(want.v.shape)
            tiny = float(np.finfo(a.dtype).tiny) if a.dtype.kind == "f" else 0.0
            _close(info.name, "original against oracle", a, want.v, bound + tiny)
            _close(info.name, "folded against oracle", b, want.v, bound + tiny)


# --- what holds for every fold -----------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """What ``bnfold.plan`` and ``bnfold.fold`` give for a model, and what was done to it."""

    plan: bnfold.Plan
    folded: ModelProto
    applied: Sequence[Applied]


def i64(*values: Any) -> Array:
    return np.array(values, np.int64)


def sizes(made: ModelProto, name: str) -> tuple[int | None, ...] | None:
    """What reading a model finds of a tensor's shape."""
    return read(made, None).graphs[0].context.shape(name)


def done(made: ModelProto, base_dir: Path | None = None) -> Done:
    """All of one reading and planning: most of the time goes there. ``test_models`` sees that the
    public functions give the same.
    """
    folded = ModelProto()
    folded.CopyFrom(made)
    planned = prepare(folded, base_dir)
    return Done(planned.plan, folded, planned.apply().applied)


def check(made: ModelProto, folded: ModelProto, plan: bnfold.Plan | None = None) -> None:
    """Valid, settled, and every affine node accounted for."""
    if valid(made):
        onnx.checker.check_model(folded, full_check=True)
    _well_named(folded)
    for field in ("input", "output"):
        before, after = getattr(made.graph, field), getattr(folded.graph, field)
        kept = [b for b in before if b.name in {a.name for a in after}]
        assert [b.SerializeToString() for b in kept] == [a.SerializeToString() for a in after]
    gone = {i.name for i in made.graph.input} - {i.name for i in folded.graph.input}
    stored = {t.name for t in made.graph.initializer}
    assert not gone or (made.ir_version < 4 and gone <= stored), f"inputs gone: {gone}"
    assert [o.name for o in folded.graph.output] == [o.name for o in made.graph.output]

    if plan is None:
        plan = bnfold.plan(made)
    taken = Counter(n for f in plan.folds for n in f.nodes)
    reasons = Counter(k.node for k in plan.kept)
    into = Counter(f.into for f in plan.folds)
    unaccounted = Counter(affine_nodes(made)) - taken - reasons - into
    assert not unaccounted, f"neither folded nor explained: {dict(unaccounted)}"
    for kept in plan.kept:
        assert kept.code and kept.message and kept.op

    if plan.folds:
        before, after = cost(made), cost(folded)
        no_worse = all(new <= old for old, new in zip(before, after))
        assert no_worse and after != before, f"(nodes, work) {before} became {after}"

    # Rarely, maps that are gone let a merge pay that did not before, or two maps that were written
    # anew are equal; then there is more to fold.
    again = done(folded)
    more = any(fold.merges or fold.is_equal for fold in again.plan.folds)
    assert more or again.plan.folds == (), f"a second fold finds more: {again.plan.folds}"
    if more:
        return
    unexplained = Counter(affine_nodes(folded)) - Counter(k.node for k in again.plan.kept)
    assert not unexplained, f"left without a reason: {dict(unexplained)}"
    assert again.folded.SerializeToString() == folded.SerializeToString()


def _well_named(made: ModelProto) -> None:
    """No value is defined twice in one graph, and no initializer is left that a fold orphaned."""
    for nodes, holder in graphs(made):
        made_here = [n for node in nodes for n in node.output if n]
        if isinstance(holder, GraphProto):
            made_here += [t.name for t in holder.initializer]
        twice = [n for n, c in Counter(made_here).items() if c > 1]
        assert not twice, f"defined twice: {twice}"


def orphans(made: ModelProto, folded: ModelProto) -> set[str]:
    """Initializers that were read before and that nothing reads now."""
    before = {n for nodes, _ in graphs(made) for n in _reads(nodes)}
    after = {n for nodes, _ in graphs(folded) for n in _reads(nodes)}
    outputs = {o.name for o in folded.graph.output}
    if made.ir_version >= 4:  # what a caller may override belongs to the interface
        outputs |= {i.name for i in made.graph.input}
    return {
        t.name
        for t in folded.graph.initializer
        if t.name not in after and t.name not in outputs
        if t.name in before or t.name not in {b.name for b in made.graph.initializer}
    }


def certified(made: ModelProto, once: Done | None = None) -> None:
    """The certificate agrees with every fold."""
    once = once or done(made)
    for certificate in certify(made, once.folded, once.applied):
        assert certificate.holds or excused(certificate, made), certificate


def excused(certificate: Certificate, made: ModelProto) -> bool:
    """Whether a check could not run: what takes a size from a run cannot be run alone, nor always
    what reads sizes that are not known; and what puts out nothing shows nothing.
    """
    if certificate.unchecked is None:
        return False
    obstacle = certificate.unchecked.obstacle
    if obstacle is Obstacle.EMPTY:
        return _has_unknown_sizes(made) or certificate.unchecked.about in _empty(made)
    return obstacle is Obstacle.NOT_DRAWABLE or (
        obstacle is Obstacle.DOES_NOT_RUN and _has_unknown_sizes(made)
    )


def _empty(made: ModelProto) -> set[str]:
    """The labels of operators of the main graph whose outputs have no numbers, as sizes tell."""
    inferred = onnx.shape_inference.infer_shapes(made).graph
    empty = {
        value.name
        for value in (*inferred.output, *inferred.value_info)
        if any(
            d.HasField("dim_value") and not d.dim_value for d in value.type.tensor_type.shape.dim
        )
    }
    return {label(node) for node in inferred.node if not empty.isdisjoint(node.output)}


def _has_unknown_sizes(made: ModelProto) -> bool:
    """Whether inference leaves the size of some tensor open."""
    inferred = onnx.shape_inference.infer_shapes(made).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    named = {value.name for value in values}
    return any(name not in named for node in inferred.node for name in node.output) or any(
        not dim.HasField("dim_value") for v in values for dim in v.type.tensor_type.shape.dim
    )


def fold(
    made: ModelProto, given: Mapping[str, Array] | None = None, *, runtime: bool = True
) -> ModelProto:
    """Fold and hold the result to everything above."""
    return fold_told(made, given, runtime=runtime).folded


def fold_told(
    made: ModelProto, given: Mapping[str, Array] | None = None, *, runtime: bool = True
) -> Done:
    """The same, with the plan."""
    before = made.SerializeToString()
    once = done(made)
    assert made.SerializeToString() == before, "the input model was changed"
    check(made, once.folded, once.plan)
    certified(made, once)
    assert not orphans(made, once.folded)
    assert_same(made, once.folded, given, runtime=runtime)
    return once


def folds(
    made: ModelProto,
    given: Mapping[str, Array] | None = None,
    *,
    runtime: bool = True,
    **left: int,
) -> ModelProto:
    """The model folds to exactly these operators and still computes the same."""
    folded = fold(made, given, runtime=runtime)
    assert counts(folded) == left
    return folded


def stays(made: ModelProto, reasons: Mapping[str, str], *, runtime: bool = True) -> None:
    """Nothing folds, each node given is kept with its reason, and the bytes are the same."""
    once = fold_told(made, runtime=runtime)
    kept = {k.node: k.code for k in once.plan.kept}
    assert {k: kept.get(k) for k in reasons} == dict(reasons)
    assert once.folded.SerializeToString() == made.SerializeToString()


def within_ulps(got: Array, exact: Array, ulps: float = 1.0) -> None:
    """A stored weight is the exact value rounded once."""
    spacing = np.spacing(np.abs(exact.astype(got.dtype))).astype(np.float64)
    off = np.abs(got.astype(np.float64) - exact) / spacing
    assert off.max(initial=0) <= ulps, f"{off.max():.2f} ulp off"
