"""Write a plan into a copy of the user's own module.

The class, the names of submodules and their order stay. A folded module becomes an Identity, with
the hooks it had, or a Remainder of its activation; a missing bias becomes a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import replace

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bnfold._core import absorbing
from bnfold._core.affine import Vector
from bnfold._core.index_maps import equal
from bnfold._core.parameters import Reading, Site
from bnfold._core.reasons import Reason
from bnfold._core.stored import Parameter
from bnfold._core.view import Absorber, Affine, Node, Receiver, View
from bnfold._plan.fit import standing_constants, standing_dtype
from bnfold._plan.planner import Move, Moves, Sides
from bnfold._torch.module.biases import MissingBiases
from bnfold._torch.module.ownership import Ownership, owner_of
from bnfold._torch.module.parameters import is_computed, write_parameters
from bnfold._torch.module.remainders import Remainders
from bnfold._torch.module.stand_ins import HOOKS, Step, become
from bnfold._torch.read.constants import Constant
from bnfold._torch.read.export import Calls
from bnfold._torch.read.graph import Graph
from bnfold._torch.read.nodes import kind_of
from bnfold._torch.tensors import from_numpy
from bnfold.nn import ScaleShift

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def per_channel(view: View, readings: Sequence[Reading], move: Move, norm: nn.Module) -> nn.Module:
    """A depthwise convolution with the kernel 1, or a `ScaleShift`, for a move that ``rewrites``.

    It is on the device of ``norm``, whose place it takes, and learns if that does.
    """
    (standing,) = move.stands
    dtype = standing_dtype(view, readings, move)
    weight, bias = (
        from_numpy(vector.astype(dtype)) for vector in standing_constants(readings, move, standing)
    )
    channels = standing.channels
    made: nn.Module = ScaleShift(channels)
    if standing.op == "Conv":
        spatial = len(view.values[view.nodes[move.into].outputs[0]].shape or ()) - 2
        weight = weight.reshape(-1, 1, *(1,) * spatial)
        made = _CONVOLUTIONS[spatial - 1](channels, channels, 1, groups=channels, device="meta")
    own = [*norm.parameters(), *norm.buffers()]
    learns = all(tensor.requires_grad for tensor in norm.parameters())
    for name, values in (("weight", weight), ("bias", bias)):
        values = values.to(own[0].device) if own else values
        made.register_parameter(name, nn.Parameter(values.clone(), requires_grad=learns))
    return made.eval()


Taken = tuple[Vector, Vector, tuple[object, ...]]


def _same(one: Taken, other: Taken) -> bool:
    """Whether two calls take in the same, bit by bit, at the same places."""
    vectors = zip(one[:2], other[:2], strict=True)
    return one[2] == other[2] and all(np.array_equal(*pair) for pair in vectors)


Uneven = tuple[tuple[fx.Node, ...], str]
"""All calls of one operator, and the side on which they take in different maps: ahead, behind."""


class Surgery:
    """Tells which moves can be written into one module, and writes them."""

    def __init__(
        self,
        module: nn.Module,
        graph: Graph,
        calls: Calls | None = None,
        again: Callable[[], ExportedProgram] | None = None,
        kept: Collection[str] = (),
        takers: Set[str] | None = None,
        aliased: Collection[str] = (),
    ) -> None:
        """Look at the module that a graph was read from.

        ``calls`` are the calls of its submodules. Without them only PyTorch's own norms may go.
        ``again`` exports the module once more, to see what a new bias would do. ``kept`` are
        parameters and buffers that may not change. ``takers`` are the modules that would hand a new
        bias to their operator, if that is known. For ``aliased`` see `Ownership`.
        """
        self._graph = graph
        self._calls = calls
        self._owned = Ownership(module, graph, kept, aliased)
        self._missing_biases = MissingBiases(graph, self._owned, again, takers)
        self._remainders = Remainders(graph, self._owned, calls) if calls is not None else None

    @property
    def called(self) -> set[str]:
        """The modules that the network calls, by the names it calls them by."""
        return self._owned.called

    @property
    def takers(self) -> Set[str] | None:
        """The modules that would hand a new bias to their operator, if somebody has asked."""
        return self._missing_biases.takers

    def objections(self, moves: Sequence[Move]) -> Mapping[int, Reason]:
        """The reasons why moves cannot be written into modules, by the number of the move."""
        gone = {self._graph.nodes[index] for move in moves for index in move.maps}
        found = {}
        for number, move in enumerate(moves):
            reason = self._objection(move, gone)
            if reason is not None:
                found[number] = reason
        return found

    def uneven(self, moves: Moves) -> Set[Uneven]:
        """The operators whose calls would not all take in the same, bit by bit."""
        found: set[Uneven] = set()
        for calls in self._owned.several:
            first, *others = (self._graph.numbers[node] for node in calls)
            ahead, behind = self._taken(first, moves)
            if not all(_same(ahead, self._taken(other, moves)[0]) for other in others):
                found.add((calls, "ahead"))
            if not all(_same(behind, self._taken(other, moves)[1]) for other in others):
                found.add((calls, "behind"))
        return found

    def _taken(self, index: int, moves: Moves) -> tuple[Taken, Taken]:
        """What goes into the parameters of an operator, ahead and behind: the scale, the shift, and
        where they lie in each weight and bias. The axis of the data says too little: on data of
        another rank the same axis may be another one of the weight, and another one the same.
        """
        sides = moves.sides.get(index, Sides())
        axis = sides.behind.axis
        places = tuple(
            None if axis is None else (site.layout(axis), site.bias_along(axis))
            for site in self._graph.readings[index].sites
        )
        ahead, behind = sides.ahead, sides.behind
        return (ahead.scale, ahead.shift, ()), (behind.scale, behind.shift, places)

    def restricted(self, view: View, uneven: Set[Uneven] = frozenset()) -> View:
        """A view in which operators absorb only maps that fit their module's parameters.

        A norm goes as a whole, or it takes in maps behind it. No other operator can stand in its
        place. ``uneven`` operators take nothing in on that side.
        """
        self._blocked = uneven
        if not any(isinstance(node.role, Affine) for node in view.nodes):
            return view
        nodes = zip(view.nodes, self._graph.nodes, self._graph.readings, strict=True)
        return replace(view, nodes=tuple(self._restricted_node(*each) for each in nodes))

    def _restricted_node(self, seen: Node, node: fx.Node, reading: Reading) -> Node:
        sites, role = reading.sites, seen.role
        if not sites or not isinstance(role, Absorber | Receiver | Affine):
            return seen
        weights = [self._unwritable(node, site, site.weight_value, "weight") for site in sites]
        biases = [self._unwritable(node, site, site.bias_value, "bias") for site in sites]
        weight, bias = _first(weights), _first(biases)
        old = role.absorber if isinstance(role, Affine) else role
        assert old is not None
        stored = any(site.bias_value is not None for site in sites)
        scale = weight or (bias if stored else None)
        before, behind = (self._several(node, sites[0], side) for side in ("ahead", "behind"))
        ahead = old.ahead and replace(
            old.ahead,
            scale_blocked=old.ahead.scale_blocked or weight or before,
            shift_blocked=old.ahead.shift_blocked or bias or before,
        )
        if isinstance(role, Receiver):
            assert ahead is not None
            return replace(seen, role=Receiver(ahead))
        assert isinstance(old, Absorber)
        new = replace(
            old,
            scale_blocked=old.scale_blocked or scale or behind,
            shift_blocked=old.shift_blocked or bias or behind,
            ahead=ahead,
        )
        if isinstance(role, Absorber):
            return replace(seen, role=new)
        free = role.map.is_identity
        return replace(seen, role=replace(role, absorber=new, composable=free, renewable=free))

    def rewriting(self, moves: Moves) -> Callable[[Move], Reason | None]:
        """Why the module of a norm cannot be one that stands for it, for moves that ``rewrites``.

        ``moves`` are all others. The norm has to come first in its module; what else the module
        does stays behind it. If the module is called several times, it has to be the same norm in
        all of them, on data of the same rank.
        """
        gone = {self._graph.nodes[index] for move in moves.moves for index in move.maps}
        taking = {self._graph.nodes[index] for index in moves.sides}

        def objection(move: Move) -> Reason | None:
            node, label = self._graph.nodes[move.into], self._graph.view.nodes[move.into].label
            inside = self._owned.inside(path) if (path := self._owned.home(node)) else []
            same = {other for other in inside if self._alike(move.into, self._graph.numbers[other])}
            maps = {self._graph.nodes[index] for index in move.maps}
            for index in move.maps:
                reason = self._why_it_stays(index, gone | same | maps)
                if reason is not None:
                    return reason
            if len(same) > 1 and (len(maps) > 1 or not (gone | taking).isdisjoint(same)):
                message = f"{label} is called in several places, and takes in a map in one of them"
                return Reason("shared-weight", label, message)
            if inside[0] not in same or len(move.stands) > 1:
                message = f"what stands for {label} would not be the first in its module"
                return Reason("not-a-module", label, message)
            return None

        return objection

    def _alike(self, one: int, other: int) -> bool:
        """Whether two norms are the same map on data of the same rank."""
        view = self._graph.view
        first, second = view.nodes[one], view.nodes[other]
        if not isinstance(first.role, Affine) or not isinstance(second.role, Affine):
            return False
        ranks = {len(view.values[node.outputs[0]].shape or ()) for node in (first, second)}
        return len(ranks) == 1 and equal(first.role.map, second.role.map)

    def apply(self, module: nn.Module, moves: Moves) -> None:
        """Carry out all moves on the planned module, or on a copy of it."""
        with torch.no_grad():
            written: set[fx.Node] = set()
            for index, sides in moves.sides.items():
                node = self._graph.nodes[index]
                if node not in written:
                    written.update(self._owned.calls_of(node))
                    for site in self._graph.readings[index].sites:
                        write_parameters(module, owner_of(node), site, sides)
            gone = {self._graph.nodes[index] for move in moves.moves for index in move.maps}
            homes = {path for node in gone if (path := self._owned.home(node)) is not None}
            left = {path: self._left(path, gone) for path in sorted(homes)}
            rewritten = {
                self._owned.home(self._graph.nodes[move.into]): move
                for move in moves.moves
                if move.rewrites
            }
            parts = {id(module.get_submodule(path)): path for path in reversed(left)}
            for path in parts.values():
                part, steps, move = module.get_submodule(path), left[path], rewritten.get(path)
                assert isinstance(steps, tuple)
                stands = self._per_channel(move, part) if move is not None else None
                become(part, steps, stands)

    def _per_channel(self, move: Move, norm: nn.Module) -> nn.Module:
        return per_channel(self._graph.view, self._graph.readings, move, norm)

    def _objection(self, move: Move, gone: set[fx.Node]) -> Reason | None:
        view = self._graph.view
        last = view.nodes[move.maps[-1]].label
        first = view.nodes[move.maps[0]]
        assert isinstance(first.role, Affine)
        source = view.values[first.inputs[first.role.data]]
        if move.law == "compose" and not move.stands:
            # An Identity gives its input itself: a write into one would be a write into the other.
            reason = absorbing.unshared(view, source, move.maps[0])
            if source.producer is None:
                message = f"{last} changes nothing, but gives a copy of what the caller passes in"
                reason = Reason("not-a-module", last, message)
            if reason is not None:
                return reason
        if move.stands:
            ops = " and ".join(standing.op for standing in move.stands)
            return Reason("not-a-module", last, f"what is left of {last} would need a new {ops}")
        return _first([self._why_it_stays(index, gone) for index in move.maps])

    def _why_it_stays(self, index: int, gone: set[fx.Node]) -> Reason | None:
        """Why an affine operator cannot go from its module."""
        node, where = self._graph.nodes[index], self._graph.view.nodes[index].label
        kept = self._owned.kept_in(node)
        if kept is not None:
            return kept
        problem = self._irreplaceable(node, gone)
        return None if problem is None else Reason("not-a-module", where, f"{where} {problem}")

    def _irreplaceable(self, node: fx.Node, gone: set[fx.Node]) -> str | None:
        """Why the module of an affine operator cannot become an Identity."""
        path = self._owned.home(node)
        if path is None:
            return "is part of a module's own code"
        module = self._owned.modules[path]
        inside = self._owned.inside(path)
        left = self._left(path, gone)
        if path in self._owned.hidden:
            return "is part of a branch or loop"
        if isinstance(left, str):
            return f"is part of a module's own code: {path} {left}"
        if (
            self._owned.has_unknown_bodies
            and not list(module.buffers())
            and not list(module.parameters())
        ):
            return "may be called in a branch or loop too"
        if self._owned.is_read_elsewhere(path):
            return "has parameters that are used elsewhere too"
        norm = isinstance(module, _BatchNorm | _InstanceNorm)
        if self._calls is None:
            if not norm:
                return "is in a module of another kind than PyTorch's norms"
        elif not self._calls.are_plain(module):
            return "is in a module that takes or gives something else than one tensor"
        hooked = any(getattr(module, attribute) for attribute in HOOKS)
        own = norm and all(kind_of(each) in ("batch_norm", "instance_norm") for each in inside)
        if isinstance(module, nn.Identity) or (hooked and not own):
            return "may be computed by a hook, which would stay"
        return None

    def _left(self, path: str, gone: Set[fx.Node]) -> tuple[Step, ...] | str:
        """What is left of a module when its affine operators are gone; or why it cannot go."""
        if set(self._owned.inside(path)) <= gone:
            return ()
        if self._remainders is None:
            return "has other work to do"
        return self._remainders.steps(path, gone)

    def _several(self, node: fx.Node, site: Site, side: str) -> Reason | None:
        """Why an operator that runs several times takes nothing in; None if it may."""
        calls = self._owned.calls_of(node)
        if (calls, side) not in self._blocked:
            return None
        old = site.weight_value
        name = old.name if isinstance(old, Constant) and old.stored else site.label
        message = (
            f"{name} is also used by {next(other for other in calls if other is not node).name}, "
            "another call of the same module, which would take in something else: "
            "bnfold.fold(exported_program) gives each call its own"
        )
        return Reason("shared-weight", name, message)

    def _unwritable(
        self, node: fx.Node, site: Site, old: Parameter | None, name: str
    ) -> Reason | None:
        """Why a new parameter of an operator has no place in a module; None if it has one."""
        if isinstance(old, Constant):
            return self._owned.why_shared(old, node) or self._unsettable(old, node, name)
        if self._missing_biases.owner(node) is None:
            message = f"the module of {site.label} has no bias to set"
            return Reason("not-a-module", site.label, message)
        return None

    def _unsettable(self, old: Constant, node: fx.Node, name: str) -> Reason | None:
        """Why a parameter cannot be set; None if the module stores it, or can be made to."""
        if old.stored:
            tensor = self._owned.tensors.get(old.name)
            if tensor is None:
                message = f"{old.name} is neither a parameter nor a buffer of the module"
                return Reason("not-a-module", old.name, message)
            if any(
                step == 0 for step, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1
            ):
                message = f"elements of {old.name} share their memory"
                return Reason("shared-weight", old.name, message)
            return None
        module = self._owned.modules.get(owner_of(node))
        if module is not None and is_computed(module, name, old):
            return None
        message = f"{old.name} is computed in a module's own code, not stored"
        return Reason("not-a-module", old.name, message)


def _first(reasons: Sequence[Reason | None]) -> Reason | None:
    return next((reason for reason in reasons if reason is not None), None)
