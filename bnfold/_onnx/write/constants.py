"""Stores new values of constants: in the tensor that held the old ones, or in one of their own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper

from bnfold._onnx import tensors
from bnfold._onnx.read import sparse
from bnfold._onnx.read.constants import Constant
from bnfold._onnx.read.scopes import Scope
from bnfold._onnx.tensors import Array

if TYPE_CHECKING:
    from bnfold._onnx.merge.merging import Network

Load = Callable[[], Array]
Relocated = tuple[TensorProto, tuple[str, int, int | None]]


class Storing:
    """The constants of one model that is edited.

    ``uses`` counts the readers of each tensor of each graph. ``relocated`` lists the changed
    tensors from external files, and where they lay. ``created`` lists the names of new tensors,
    ``made`` what makes values ``later``, ``prepended`` new nodes that make constants.
    """

    def __init__(
        self, network: Network, uses: Mapping[str, Counter[str]], later: bool = False
    ) -> None:
        self.relocated: list[Relocated] = []
        self.created: set[str] = set()
        self.made: list[Load] = []
        self.prepended: dict[str, list[NodeProto]] = {s.path: [] for s in network.scopes}
        self._names = network.names
        self._main = network.scopes[0]
        self._ir_version = network.model.ir_version
        self._base_dir = network.base_dir
        self._uses = uses
        self._later = later
        self._annotated = {s.path: _annotated(s) for s in network.scopes}
        self._copies: dict[tuple[object, ...], dict[bytes, str]] = {}

    def put(self, scope: Scope, old: Constant | None, values: Array, wanted: str) -> str | None:
        """Store values for a node to read. Gives their name; None where the node reads it already.

        Inputs with the same values in place of one old tensor, whatever Identity operators hand it
        on, share one; so do those in place of any that operators make of constants. The old tensor
        is rewritten if only this node reads it and if it keeps its shape and type. Otherwise a new
        tensor is made under a fresh name, in the graph of the old one, where all its readers see
        it. A sparse tensor stays one, with new numbers in its places, if the values are 0
        elsewhere.
        """
        home, like = self._likeness(scope, old, values.shape, values.dtype)
        copies = self._copies.get(like, {}) if old is not None else {}
        name = copies.get(_digest(values)) if copies else None
        known = name is not None
        held, numbers = (None, values) if old is None or known else self._holder(old, values)
        may = self._may_rewrite
        if old is not None and held is not None and may(scope, old, values.shape, values.dtype):
            if held.data_location == TensorProto.EXTERNAL and not tensors.is_own(held):
                self.relocated.append((held, tensors.external_location(held)))
            tensors.write(held, numbers)
            return None
        if name is None:
            name, few = self._names.fresh(wanted), old.sparse if old is not None else None
            if few is not None and held is not None and not home.is_function:
                name = self._add_sparse(home, name, few, numbers)
            else:
                name = self.add(home, name, values)
            self._copies.setdefault(like, {})[_digest(values)] = name
        return name

    def put_later(self, scope: Scope, old: Constant, dtype: np.dtype[Any], make: Load) -> bool:
        """Give a constant of the main graph values that are made when the model is written.

        False, and nothing is done, where `put` would not rewrite it in place, or where its old
        values do not lie in a file. ``make`` gives the same values whenever it is called: the old
        tensor can still be read.
        """
        held, main = old.stored, self._main
        if not self._later or held is None or held.data_location != TensorProto.EXTERNAL:
            return False
        if held.data_type in tensors.PACKED:
            return False
        if scope.owner(old.name) is not main or held is not main.initializers.get(old.name):
            return False
        known = self._copies.get(self._likeness(scope, old, old.shape, dtype)[1])
        if known or not self._may_rewrite(scope, old, old.shape, dtype):
            return False
        if not tensors.is_own(held):
            self.relocated.append((held, tensors.external_location(held)))
        held.external_data.add(key=tensors.MADE, value=str(len(self.made)))
        self.made.append(make)
        return True

    def add(self, scope: Scope, name: str, values: Array) -> str:
        """A new initializer; in a function, which has none, a Constant node.

        Before IR version 4 an initializer must be an input too, and only the main graph can get new
        inputs.
        """
        tensor = tensors.make(name, values)
        self.created.add(name)
        if scope.is_function:
            self.prepended[scope.path].append(
                helper.make_node("Constant", [], [name], value=tensor)
            )
            scope.initializers[name] = tensor
            return name
        while self._ir_version < 4 and scope.parent is not None:
            scope = scope.parent
        assert isinstance(scope.graph, GraphProto)
        scope.graph.initializer.append(tensor)
        scope.initializers[name] = tensor
        if self._ir_version < 4:
            info = helper.make_tensor_value_info(name, tensor.data_type, values.shape)
            scope.graph.input.append(info)
        return name

    def _likeness(
        self, scope: Scope, old: Constant | None, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> tuple[Scope, tuple[object, ...]]:
        """The graph of the old tensor, and what tensors have in common that may share values: the
        one that they were, or that operators made them. Two Transposes of one weight make two.
        """
        source, origin = scope.origin(old.name) if old is not None else (None, None)
        home = source or (scope.owner(old.name) if old is not None else None) or scope
        position = source.producers.get(origin) if source is not None and origin else None
        if source is not None and position is not None:
            origin = origin if source.nodes[position].op_type == "Constant" else None
        return home, (home.path, origin, shape, dtype.str)

    def _may_rewrite(
        self, scope: Scope, old: Constant, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> bool:
        owner = scope.owner(old.name)
        return (
            owner is not None
            and old.name not in owner.protected
            and self._uses[owner.path][old.name] == 1
            and old.name not in self._annotated[owner.path]
            and old.shape == shape
            and old.data_type == tensors.data_type(dtype)
        )

    def _holder(self, old: Constant, values: Array) -> tuple[TensorProto | None, Array]:
        """The tensor that holds a constant, if it can hold these values, and its numbers then."""
        if old.sparse is None or (old.shape, old.dtype) != (values.shape, values.dtype):
            return old.stored, values
        numbers = sparse.kept(old.sparse, values, self._base_dir)
        return (None, values) if numbers is None else (old.sparse.values, numbers)

    def _add_sparse(self, scope: Scope, name: str, like: SparseTensorProto, numbers: Array) -> str:
        """A new sparse initializer, with other numbers in the places of one."""
        assert isinstance(scope.graph, GraphProto)
        self.created.add(name)
        tensor = scope.graph.sparse_initializer.add(dims=like.dims)
        tensor.values.CopyFrom(tensors.make(name, numbers))
        tensor.indices.CopyFrom(tensors.make("", tensors.read(like.indices, self._base_dir)))
        scope.sparse[name] = tensor
        return name


def _digest(values: Array) -> bytes:
    """What tells values of one shape and type from others."""
    return hashlib.sha256(values.tobytes()).digest()


def _annotated(scope: Scope) -> set[str]:
    if isinstance(scope.graph, FunctionProto):
        return set()
    return {note.tensor_name for note in scope.graph.quantization_annotation}
