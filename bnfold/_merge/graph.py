"""The graph that merging works on: a view that changes as operators merge.

Operators have positions and tensors have names. What a framework knows of a graph comes in through
the view; what one operator computes is asked of the framework when it is needed.

These hold at any time; `MergeGraph.check` tests them:

- A position keeps its place in the order: whoever writes a tensor stands ahead of all who read it.
- A tensor has one writer at most, which lists it among what it writes.
- The readers of a tensor are the operators that list it among what they read, once for each read.
- A tensor that is read or written exists, and so does one that may not change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bnfold._core.broadcast import Shape
from bnfold._core.reasons import Reason
from bnfold._core.view import View
from bnfold._merge.steps import LinearForm, LinearStep

_NOTHING = LinearForm()


@dataclass(frozen=True)
class Operator:
    """What the user calls an operator, its type, and the names of the tensors that it reads, by
    number, and writes.

    "" stands for an input that is absent, or of which no more than the element type is taken.
    """

    label: str
    op: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """What a replacement has made of a graph.

    ``operators`` gives by position what stands there now, None for nothing; ``into`` is the
    position of the linear operator that was made. ``shapes`` are those of new tensors.
    """

    into: int
    operators: Mapping[int, Operator | None]
    shapes: Mapping[str, Shape | None]


@dataclass
class _Tensor:
    """One tensor: its sizes, who writes it, every read of its values or shape, and why it may not
    change.
    """

    shape: Shape | None
    writer: int | None = None
    readers: list[int] = field(default_factory=list)
    pinned: Reason | None = None


class MergeGraph:
    """A graph over a view; ``describe`` says what the operator at a position computes by now."""

    def __init__(self, view: View, describe: Callable[[int], LinearForm]) -> None:
        """Positions are the places of the view's nodes."""
        self._describe = describe
        self._forms: dict[int, LinearForm] = {}
        names = [value.name for value in view.values]
        self._tensors = {
            value.name: _Tensor(value.shape, value.producer, [], value.pinned)
            for value in view.values
        }
        self._operators: list[Operator | None] = []
        for place, node in enumerate(view.nodes):
            taken = enumerate(node.inputs)
            reads = tuple(names[v] if v >= 0 and k not in node.typed else "" for k, v in taken)
            writes = tuple(names[v] for v in node.outputs if v >= 0)
            self._operators.append(Operator(node.label, node.op, reads, writes))
            self._listen(place, reads)

    def __len__(self) -> int:
        """How many positions there are."""
        return len(self._operators)

    def __contains__(self, tensor: str) -> bool:
        """Whether there is a tensor of this name by now."""
        return tensor in self._tensors

    def reads(self, position: int) -> Sequence[str]:
        """The tensors that an operator reads, by number."""
        return self._at(position).reads

    def output(self, position: int) -> str | None:
        """The only tensor that is written at a position, if there is one."""
        operator = self._operators[position]
        return operator.writes[0] if operator is not None and len(operator.writes) == 1 else None

    def writer(self, tensor: str) -> int | None:
        """The operator that writes a tensor as its only output."""
        known = self._tensors.get(tensor)
        position = known.writer if known is not None else None
        return position if position is not None and self.output(position) == tensor else None

    def readers(self, tensor: str) -> Sequence[int]:
        """The operators that read a tensor's values or shape, once for each read."""
        return self._tensors[tensor].readers

    def shared(self, tensor: str) -> Reason | None:
        """Why a tensor may not vanish: more than one read, of its shape too, or an output. Its type
        can be read elsewhere.
        """
        known = self._tensors[tensor]
        if known.pinned is not None:
            return known.pinned
        if len(known.readers) > 1:
            reader = self.label(known.readers[1])
            return Reason("shared-output", reader, f"{tensor} is also read by {reader}")
        return None

    def shape(self, tensor: str) -> Shape | None:
        """The sizes of a tensor, as far as they are known."""
        return self._tensors[tensor].shape

    def channel_axis(self, tensor: str, space: int) -> int | None:
        """The axis of channels of a tensor with so many axes of space: the one ahead of these. Of a
        tensor whose rank is not known it is axis 1, behind the batch, if it has such axes.
        """
        shape = self.shape(tensor)
        if shape is not None:
            return len(shape) - 1 - space
        return 1 if space else None

    def label(self, position: int) -> str:
        """What a user calls an operator."""
        return self._at(position).label

    def kind(self, position: int) -> str:
        """An operator's type."""
        return self._at(position).op

    def step(self, position: int) -> LinearStep | None:
        """What an operator is of its input; None for what no linear function is near."""
        return self._form(position).step

    def signs(self, position: int) -> tuple[int, ...] | None:
        """1 or −1 for each tensor that an operator adds up; None unless it does that."""
        return self._form(position).signs

    def put(self, written: Written) -> None:
        """Go on from what a replacement has made. Tensors that nobody writes any more vanish."""
        changed = written.operators.keys()
        old = [(p, one) for p in changed if (one := self._operators[p]) is not None]
        for name in {name for _, operator in old for name in operator.reads if name}:
            known = self._tensors[name]
            known.readers = [p for p in known.readers if p not in changed]
        for name, shape in written.shapes.items():
            self._tensors.setdefault(name, _Tensor(shape))
        for position, operator in written.operators.items():
            self._operators[position] = operator
            self._forms.pop(position, None)
            for name in operator.writes if operator is not None else ():
                self._tensors[name].writer = position
            self._listen(position, operator.reads if operator is not None else ())
        for position, operator in old:
            now = self._operators[position]
            for name in operator.writes:
                if self._tensors[name].writer == position and (
                    now is None or name not in now.writes
                ):
                    del self._tensors[name]

    def check(self) -> None:
        """Raise `AssertionError` where something that holds at any time does not."""
        reads: dict[str, Counter[int]] = {}
        for position, operator in enumerate(self._operators):
            if operator is None:
                continue
            for name in operator.writes:
                assert name in self._tensors, f"{operator.label} writes {name}, which is unknown"
                writer = self._tensors[name].writer
                assert writer == position, f"{name} is written by {operator.label} and {writer}"
            for name in filter(None, operator.reads):
                assert name in self._tensors, f"{operator.label} reads {name}, which is unknown"
                reads.setdefault(name, Counter())[position] += 1
        for name, known in self._tensors.items():
            found, listed = reads.get(name, Counter()), Counter(known.readers)
            assert found == listed, f"{name} is read at {found}, not at {listed}"
            if known.writer is None:
                continue
            operator = self._operators[known.writer]
            assert operator is not None, f"{name} is written by nobody"
            assert name in operator.writes, f"{operator.label} does not write {name}"
            late = all(position > known.writer for position in known.readers)
            assert late, f"{name} is read ahead of {operator.label}, which writes it"

    def _listen(self, position: int, reads: Sequence[str]) -> None:
        """Know that an operator reads tensors."""
        for name in filter(None, reads):
            self._tensors[name].readers.append(position)

    def _at(self, position: int) -> Operator:
        operator = self._operators[position]
        assert operator is not None
        return operator

    def _form(self, position: int) -> LinearForm:
        """What an operator computes, asked once; nothing where none stands."""
        if self._operators[position] is None:
            return _NOTHING
        if position not in self._forms:
            self._forms[position] = self._describe(position)
        return self._forms[position]
