"""The graph on which merging works: a view, and the changes since it was made.

Operators have positions and tensors have names. The view tells what the framework knows about the
graph. The framework is asked what one operator computes when that is needed.

These rules hold at any time; `MergeGraph.check` tests them:

- The order of positions does not change: the writer of a tensor stands ahead of all its readers.
- A tensor has at most one writer. The writer lists the tensor among those that it writes.
- The readers of a tensor are the operators that list it among what they read, once for each read.
  A tensor of a graph around this one lists no readers: it cannot change here.
- A tensor that is read or written exists. So does a tensor that may not change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field

from bnfold._core.broadcast import Shape
from bnfold._core.reasons import Reason
from bnfold._core.view import Value, View
from bnfold._merge.steps import NEITHER, LinearForm, LinearStep
from bnfold._system.records import record

# For so many operators the linear form is remembered: merging looks at near operators.
_REMEMBERED = 512


@record(frozen=True)
class Operator:
    """One operator: its label for the user, its type, and the tensors that it reads and writes.

    ``reads`` has a name for each input. It is "" for an absent input, and for one from which only
    the element type is taken.
    """

    label: str
    op: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@record(frozen=True)
class Written:
    """What a replacement has changed in a graph.

    ``operators`` has by position the operator that stands there now, None for none. ``into`` is the
    position of the new linear operator. ``shapes`` has the shapes of tensors, new ones too.
    """

    into: int
    operators: Mapping[int, Operator | None]
    shapes: Mapping[str, Shape | None]


@record
class _Tensor:
    """One tensor: its sizes, its writer and its readers.

    ``readers`` has an entry for each read of its values or its shape. ``pinned`` says why it may
    not change, ``outer`` whether it belongs to a graph around this one.
    """

    shape: Shape | None
    writer: int | None = None
    readers: list[int] = field(default_factory=list)
    pinned: Reason | None = None
    outer: bool = False

    @classmethod
    def of(cls, value: Value) -> _Tensor:
        """A tensor as a view has it."""
        readers = sorted((*value.readers, *value.shape_readers))
        outer = value.producer is None and not readers
        return cls(value.shape, value.producer, readers, value.pinned, outer)


class MergeGraph:
    """A graph over a view; ``describe`` gives what the operator at a position computes now."""

    def __init__(self, view: View, describe: Callable[[int], LinearForm]) -> None:
        """Positions are the places of the view's nodes."""
        self._view = view
        self._describe = describe
        self._numbers = {value.name: number for number, value in enumerate(view.values)}
        self._forms: dict[int, LinearForm] = {}
        # These two hold only changes: a copy of the whole view would be large.
        self._operators: dict[int, Operator | None] = {}
        self._tensors: dict[str, _Tensor | None] = {}

    def __len__(self) -> int:
        """How many positions there are."""
        return len(self._view.nodes)

    def __contains__(self, tensor: str) -> bool:
        """Whether a tensor of this name exists now."""
        return self._find(tensor) is not None

    def reads(self, position: int) -> Sequence[str]:
        """The tensors that an operator reads, by number."""
        return self._at(position).reads

    def output(self, position: int) -> str | None:
        """The only tensor that is written at a position, if there is one."""
        if position in self._operators:
            operator = self._operators[position]
            writes = operator.writes if operator is not None else ()
            return writes[0] if len(writes) == 1 else None
        numbers = [v for v in self._view.nodes[position].outputs if v >= 0]
        return self._view.values[numbers[0]].name if len(numbers) == 1 else None

    def writer(self, tensor: str) -> int | None:
        """The operator that writes a tensor as its only output."""
        known = self._find(tensor)
        if known is None:
            return None
        position = known.writer if isinstance(known, _Tensor) else known.producer
        return position if position is not None and self.output(position) == tensor else None

    def readers(self, tensor: str) -> Sequence[int]:
        """The operators that read a tensor's values or shape, once for each read."""
        known = self._known(tensor)
        if isinstance(known, Value) and not known.shape_readers:
            return known.readers
        return (known if isinstance(known, _Tensor) else _Tensor.of(known)).readers

    def shared(self, tensor: str) -> Reason | None:
        """Why a tensor may not vanish; None if it may.

        It may not if it is pinned, or read more than once. A read of its shape counts; a read of
        its type does not, as the type can be read from another tensor.
        """
        pinned, readers = self._known(tensor).pinned, self.readers(tensor)
        if pinned is None and len(readers) > 1:
            reader = self.label(readers[1])
            return Reason("shared-output", reader, f"{tensor} is also read by {reader}")
        return pinned

    def shape(self, tensor: str) -> Shape | None:
        """The sizes of a tensor, as far as they are known."""
        return self._known(tensor).shape

    def channel_axis(self, tensor: str, space: int) -> int | None:
        """The axis of channels of a tensor with ``space`` axes of space, directly ahead of them.

        For ``[N, C, H, W]`` and space 2 it is axis 1. If the rank is not known, it is axis 1 for
        one axis of space or more, and None for none.
        """
        shape = self.shape(tensor)
        if shape is not None:
            return len(shape) - 1 - space
        return 1 if space else None

    def label(self, position: int) -> str:
        """The user's name for an operator."""
        known = self._operators.get(position)
        return (self._view.nodes[position] if known is None else known).label

    def kind(self, position: int) -> str:
        """An operator's type."""
        known = self._operators.get(position)
        return (self._view.nodes[position] if known is None else known).op

    def step(self, position: int) -> LinearStep | None:
        """The step that an operator is; None for an operator that is nothing like a linear one."""
        return self._form(position).step

    def signs(self, position: int) -> tuple[int, ...] | None:
        """1 or −1 for each term of an operator that adds tensors; None for other operators."""
        return self._form(position).signs

    def put(self, written: Written) -> None:
        """Take over what a replacement has changed. Tensors that lose their writer vanish."""
        changed = written.operators.keys()
        old = [one for position in changed if (one := self._operator(position)) is not None]
        for name in {name for operator in old for name in operator.reads if name}:
            known = self._own(name)
            known.readers = [p for p in known.readers if p not in changed]
        for operator in old:
            for name in operator.writes:
                self._own(name).writer = None
        for name, shape in written.shapes.items():
            if name not in self:
                self._tensors[name] = _Tensor(shape)
        for position, now in written.operators.items():
            self._operators[position] = now
            self._forms.pop(position, None)
            for name in now.writes if now is not None else ():
                self._own(name).writer = position
            for name in now.reads if now is not None else ():
                if name and not self._own(name).outer:
                    self._own(name).readers.append(position)
        for operator in old:
            for name in operator.writes:
                if self._own(name).writer is None:
                    self._tensors[name] = None

    def check(self) -> None:
        """Raise `AssertionError` if a rule of the module text is broken."""
        reads: dict[str, Counter[int]] = {}
        for position in range(len(self)):
            operator = self._operator(position)
            for name in operator.writes if operator is not None else ():
                assert name in self, f"{self.label(position)} writes {name}, which is unknown"
                writer = self._own(name).writer
                assert writer == position, f"{name} is written at {position} and at {writer}"
            for name in operator.reads if operator is not None else ():
                assert not name or name in self, f"{self.label(position)} reads {name}: unknown"
                reads.setdefault(name, Counter())[position] += 1
        for name in {*self._numbers, *self._tensors}:
            if name not in self:
                continue
            known = self._own(name)
            found, listed = reads.get(name, Counter()), Counter(known.readers)
            assert known.outer or found == listed, f"{name} is read at {found}, not at {listed}"
            if known.writer is not None:
                operator = self._at(known.writer)
                assert name in operator.writes, f"{operator.label} does not write {name}"
                late = all(position > known.writer for position in known.readers)
                assert late, f"{name} is read ahead of {operator.label}, which writes it"

    def _find(self, tensor: str) -> _Tensor | Value | None:
        if tensor in self._tensors:
            return self._tensors[tensor]
        number = self._numbers.get(tensor)
        return self._view.values[number] if number is not None else None

    def _known(self, tensor: str) -> _Tensor | Value:
        known = self._find(tensor)
        assert known is not None, f"there is no {tensor}"
        return known

    def _own(self, tensor: str) -> _Tensor:
        """A tensor that may be changed."""
        known = self._known(tensor)
        if isinstance(known, Value):
            self._tensors[tensor] = known = _Tensor.of(known)
        return known

    def _operator(self, position: int) -> Operator | None:
        """The operator at a position, None if none stands there."""
        if position in self._operators:
            return self._operators[position]
        node, values = self._view.nodes[position], self._view.values
        numbered = enumerate(node.inputs)
        reads = (values[v].name if v >= 0 and k not in node.typed else "" for k, v in numbered)
        writes = (values[v].name for v in node.outputs if v >= 0)
        return Operator(node.label, node.op, tuple(reads), tuple(writes))

    def _at(self, position: int) -> Operator:
        operator = self._operator(position)
        assert operator is not None
        return operator

    def _form(self, position: int) -> LinearForm:
        """What the operator at a position computes; `NEITHER` if none stands there."""
        if position not in self._forms:
            if len(self._forms) >= _REMEMBERED:
                self._forms.clear()
            gone = self._operators.get(position, position) is None
            self._forms[position] = NEITHER if gone else self._describe(position)
        return self._forms[position]
