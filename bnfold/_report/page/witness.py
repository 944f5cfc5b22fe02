"""Watches a fold: what the network was, where each map went, and what the layers are now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bnfold._core.affine import IDENTITY, AffineMap
from bnfold._core.view import Absorber, Affine, Role
from bnfold._onnx.files.external import refuse_own_data
from bnfold._onnx.files.load import load_model
from bnfold._onnx.fold import PlannedModel
from bnfold._onnx.read.constants import Constants
from bnfold._onnx.read.graph import Graph
from bnfold._onnx.read.scopes import label, read_scopes
from bnfold._onnx.read.shapes import Shapes
from bnfold._plan.planner import Move, Sides
from bnfold._report.page.changes import Place, changed_operators
from bnfold._report.page.channels import Channels, channels_of, span, table
from bnfold._report.page.drawing import Drawing
from bnfold._report.page.pairing import Picture, paired

_ROWS = 3000
"""So many channels are shown on a page, of all layers together."""
_MOST = 16
"""And so many of one layer."""
_HELD = 1 << 28
"""So many bytes of weights are held until the folded ones are there to look for the worst channels.

Of layers beyond that the first channels are shown.
"""


@dataclass(frozen=True)
class Step:
    """One fold of the plan, by places in the graphs before it.

    ``ranges`` has for each map that goes its `channels.span`.
    """

    gone: Sequence[Place]
    into: Place | None
    crossed: Sequence[Place] = ()
    ranges: Sequence[Sequence[float | None]] = ()


@dataclass
class Witness:
    """What was seen of a fold. The pipeline calls its methods in this order, each at most once.

    ``page`` is the file that is going to be written, ``output`` that of the folded model; of
    ``after`` the operators ``altered`` have other weights than folding gave them. All methods
    raise `UsageError` where the page would replace weights of a model.
    """

    page: Path | None = None
    output: Path | None = None
    before: Drawing = field(default_factory=lambda: Drawing((), (), {}))
    after: Drawing | None = None
    steps: list[Step] = field(default_factory=list)
    kept: list[Place | None] = field(default_factory=list)
    tables: dict[Place, Mapping[str, Any]] = field(default_factory=dict)
    altered: list[int] = field(default_factory=list)
    is_altered: bool = False
    _sides: dict[Place, tuple[Sides, bool]] = field(default_factory=dict)
    _layers: dict[Place, Channels] = field(default_factory=dict)

    @cached_property
    def picture(self) -> Picture:
        """Both networks in one, once all is seen; where nothing was written the second is the
        first.
        """
        return paired(self.before, self.after or self.before)

    def planned(self, planned: PlannedModel) -> None:
        """Look at a model that is planned and not changed yet."""
        network = planned.network
        if self.page is not None:
            refuse_own_data(self.page, network.model, network.base_dir)
        self.before = Drawing.of(network.model)
        for merges, scope in zip(network.merges, network.scopes, strict=True):
            places = {label(node): k for k, node in enumerate(scope.graph.node)}
            for patch in merges.patches:
                # The operator that is left may stand in the place of another one.
                left = patch.nodes[patch.into]
                into = places.get(label(left), patch.into) if left is not None else patch.into
                gone = [places[name] for name, _ in patch.gone if name in places]
                pairs = [([k], stays) for k, stays in patch.equal.items()]
                self.steps += [
                    Step([(patch.path, k) for k in those], (patch.path, stays))
                    for those, stays in pairs or [(gone, into)]
                ]
        for graph, moves in planned.settled:
            place_of = _places(graph)
            self.steps += [_step(graph, place_of, move) for move in moves.moves]
            self.kept += [place_of(k) for k in moves.kept]
        for merges, scope in zip(network.merges, network.scopes, strict=True):
            places = {label(node): k for k, node in enumerate(scope.graph.node)}
            told = [(scope.path, places.get(stays.node)) for stays in merges.stays]
            self.kept += [(path, k) if k is not None else None for path, k in told]
        most, room = self._most(sum(len(moves.sides) for _, moves in planned.settled)), _HELD
        for graph, moves in planned.settled:
            place_of = _places(graph)
            for index, sides in moves.sides.items():
                place = place_of(index)
                node = graph.scope.nodes[graph.positions[index]]
                found = channels_of(graph.context.constants, graph.scope, node, room, most)
                if found is not None:
                    room = max(room - found.nbytes, 0)
                    fits = _is_by_channel(graph.view.nodes[index].role, sides.behind)
                    self._layers[place], self._sides[place] = found, (sides, fits)

    def written(self, path: Path, follow_links: bool = True) -> None:
        """Look at the folded model, in a file that may go away again.

        ``follow_links`` is as in `locations`: the file is bnfold's own, most often.
        """
        model = load_model(path, lean=True, follow_links=follow_links)
        if self.page is not None and self.output is not None:
            refuse_own_data(self.page, model, self.output.parent)
        self.after = Drawing.of(model)
        scopes = {scope.path: scope for scope in read_scopes(model)}
        constants = Constants(path.parent, Shapes())
        picture = self.picture
        there = {
            number: place
            for place, k in self.after.places.items()
            for number in (picture.second[k],)
        }
        most = self._most(len(self._layers))
        for place, layer in self._layers.items():
            here = self.before.places.get(place)
            twin = there.get(picture.first[here]) if here is not None else None
            if twin is None:
                continue
            scope = scopes[twin[0]]
            after = channels_of(constants, scope, scope.nodes[twin[1]], _HELD, most)
            sides, fits = self._sides[place]
            found = table(layer, after, sides.behind, sides.ahead, fits, most)
            if found is not None:
                self.tables[place] = found
        self._layers.clear()

    def finished(self, folded: Path, final: Path, follow_links: bool = True) -> None:
        """Look at the model that another step made of the folded one, in files that go away."""
        models = [load_model(p, lean=True, follow_links=follow_links) for p in (folded, final)]
        if self.page is not None and self.output is not None:
            refuse_own_data(self.page, models[1], self.output.parent)
        drawings = [Drawing.of(model) for model in models]
        step = paired(*drawings)
        changed = {*changed_operators(step, drawings, models, [folded.parent, final.parent])}
        self.after, self.is_altered = drawings[1], True
        del self.picture
        number_of = self.picture.second
        self.altered = [number_of[k] for k, n in enumerate(step.second) if n in changed]

    @staticmethod
    def _most(layers: int) -> int:
        return max(2, min(_MOST, _ROWS // max(layers, 1)))


def _is_by_channel(role: Role, behind: AffineMap) -> bool:
    """Whether a map behind a layer has a number for each channel that `channels_of` tells apart.

    A product of stacks of matrices takes maps in along several axes; of these the last one counts.
    """
    axes = role.channels if isinstance(role, Absorber) else {}
    return behind.axis is None or behind.axis == max(axes, default=None)


def _places(graph: Graph) -> Callable[[int], Place]:
    """The place of an operator of a view in the graph of the file.

    One that others have merged into has its own name, and may stand in the place of another one.
    """
    path, nodes = graph.scope.path, graph.scope.graph.node
    named = {label(node): k for k, node in enumerate(nodes)}

    def place(index: int) -> Place:
        position, name = graph.positions[index], graph.view.nodes[index].label
        return path, position if label(nodes[position]) == name else named.get(name, position)

    return place


def _step(graph: Graph, place: Callable[[int], Place], move: Move) -> Step:
    nodes = graph.view.nodes
    ended = {end.node for end in move.ends}
    crossed = [k for k in (*move.carriers, *move.crossed) if k not in ended and k != move.into]
    into = move.ends[0].node if move.ends and move.law == "carry" else move.into
    roles = [nodes[k].role for k in move.maps]
    return Step(
        [place(k) for k in move.maps],
        place(into),
        [place(k) for k in dict.fromkeys(crossed)],
        [span(role.map if isinstance(role, Affine) else _NOTHING) for role in roles],
    )


_NOTHING: AffineMap = IDENTITY
