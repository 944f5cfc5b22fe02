"""Writes new scales of weights that are stored as integers, or rounded to integers at every run."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto

from bnfold._core.parameters import Site
from bnfold._core.quantized import Rescaled
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.read.quantized import Dequantized, spread_zero
from bnfold._onnx.read.rounded import scale_product
from bnfold._onnx.write.edits import Editor
from bnfold._plan.planner import Sides


def write_scales(editor: Editor, graph: Graph, sides: Mapping[int, Sides]) -> None:
    """Multiply the scale of each quantized weight that a map goes into, once for all that read it.

    It is in the DequantizeLinear that its operator reads, and in the QuantizeLinear that makes the
    integers, if one does; or in the Mul of two scales. Where operators that read one weight take
    different maps in, each but the first gets a DequantizeLinear of its own. These read the same
    constants at first, so that nothing is written in place that another one is made from.
    """
    found = []
    for node in sides:
        reader = graph.scope.nodes[graph.positions[node]]
        for site in graph.readings[node].sites:
            if site.quantized is not None:
                found.append((node, site, graph.context.dequantized(reader, site.weight)))
    own = _copies(editor, graph, sides, [(node, site) for node, site, _ in found])
    done = set[int]()
    for node, site, held in found:
        if not isinstance(held, Dequantized):
            _write_factor(editor, graph, graph.positions[node], site, sides[node])
            continue
        end = own.get(node, graph.scope.nodes[held.position])
        new = None if id(end) in done else site.rescaled(sides[node].behind, sides[node].ahead)
        if isinstance(new, Rescaled):
            done.add(id(end))
            _write(editor, graph, held, end, new)


def _copies(
    editor: Editor, graph: Graph, sides: Mapping[int, Sides], found: list[tuple[int, Site]]
) -> dict[int, NodeProto]:
    """DequantizeLinears of their own, by the operators that read them instead of a shared one."""
    made: dict[int, NodeProto] = {}
    first: dict[str, tuple[object, dict[object, NodeProto]]] = {}
    for node, site in found:
        behind, ahead = sides[node].behind, sides[node].ahead
        sharing = site.quantized.sharing if site.quantized is not None else None
        if sharing is None or (behind.keeps_scale and ahead.keeps_scale):
            continue
        factor = site.factor(behind, ahead)
        key = (factor.shape, factor.tobytes())
        old, others = first.setdefault(sharing.name, (key, {}))
        if key == old:
            continue
        position = graph.scope.producers[sharing.name]
        if key not in others:
            others[key] = editor.duplicate(graph.scope, position)
        made[node] = others[key]
        editor.connect(graph.scope, graph.positions[node], site.weight, made[node].output[0])
    return made


def _write_factor(editor: Editor, graph: Graph, position: int, site: Site, sides: Sides) -> None:
    """Write the new scale into the Mul of two scales at the end of a dynamic quantization."""
    new = site.rescaled(sides.behind, sides.ahead)
    if not isinstance(new, Rescaled):
        return
    held = scale_product(graph.context, graph.scope.nodes[position])
    assert held is not None
    wanted, values = f"{held.scale.name}_folded", held.laid(new.scale)
    factor = graph.scope.nodes[held.position]
    editor.store(graph.scope, factor, held.number, held.scale, values, wanted)


def _write(
    editor: Editor, graph: Graph, held: Dequantized, dequantizer: NodeProto, new: Rescaled
) -> None:
    """Write what becomes of a weight into its DequantizeLinear, and into its QuantizeLinear."""
    scope, rounds = graph.scope, held.quantizer
    ends = [(dequantizer, held.scale, held.zero)]
    if rounds is not None:
        ends.append((scope.nodes[rounds.position], rounds.scale, rounds.zero))
    for end, scale, zero in ends:
        if new.axis is not None:
            old = zero.load() if zero is not None else None
            zeros = spread_zero(end, new.scale.size, new.axis, old)
            if zeros is not None and zero is not None:
                editor.store(scope, end, 2, zero, zeros, f"{zero.name}_folded")
        editor.store(scope, end, 1, scale, new.scale, f"{scale.name}_folded")
    stored, numbers, reader = held.integers, new.integers, dequantizer
    if rounds is not None:
        stored, numbers, reader = rounds.numbers, new.numbers, scope.nodes[rounds.position]
    if stored is not None and numbers is not None:
        editor.store(scope, reader, 0, stored, numbers, f"{stored.name}_folded")
