"""A module of PyTorch beside a file that is said to compute the same, as exporters write it.

PyTorch runs the module, onnxruntime the file, its optimizations off. The tensors of the example go
into the file's inputs in their order, and outputs are paired by position: exporters name both as
they like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnfold._errors import UsageError
from bnfold._judge.bench import EarlyVerdict
from bnfold._judge.difference import is_float
from bnfold._judge.float64_model import Float64Model
from bnfold._judge.torch_bench import RUNTIME, TorchBench
from bnfold._run.bounds import Bounds
from bnfold._run.input_sets import InputSet, Port, port_of_proto
from bnfold._run.nodes import own_inputs
from bnfold._run.noise import Array
from bnfold._run.reference import Reference
from bnfold._run.session import EngineError, OnnxRuntime
from bnfold._run.source import Source
from bnfold._run.torch_model import Call, TorchModel
from bnfold._torch.tensors import to_numpy

_TYPES = {torch.float32: "float", torch.float64: "double"}
"""What ONNX calls types that have another name in PyTorch."""

_BFLOAT16 = "tensor(bfloat16)"


class FileBench(TorchBench):
    """See `Bench`. The file takes the place of the folded model.

    With ``double`` PyTorch runs the module in float64, and the evaluator of the onnx package the
    file.
    """

    def __init__(
        self,
        module: nn.Module,
        file: Source,
        call: Call,
        sets: Sequence[InputSet],
        bounds: Bounds,
        *,
        double: bool,
    ) -> None:
        """Take a module, a file, and the inputs to run them on. Raises `UsageError` where the
        module cannot be copied.
        """
        super().__init__(module, module, call, sets, double=double)
        self._file = file
        self._bounds = bounds
        self._engine: type[OnnxRuntime] | type[Reference] = OnnxRuntime
        if double or self.width == np.dtype(np.float64).itemsize:
            self.original = TorchModel(module, call, double=double, numbers_move=True)

    @property
    def apart(self) -> bool:
        """True: PyTorch runs the module, and another runtime the file."""
        return True

    @property
    def runtime(self) -> str:
        """Names and versions of what runs the module and the file."""
        return f"{RUNTIME}, {(Reference if self.double else self._engine).runtime}"

    def _other(self, double: bool) -> _File:
        """The file, ready to run. Raises `EngineError` where nothing loads it."""
        ports, placed = self._ports[0], self._placed
        try:
            session = Float64Model(self._file, self._bounds) if double else self._session()
        except EngineError as error:
            raise EngineError(f"the file does not load: {error}") from error
        return _File(session, ports, placed, self._call)

    def _session(self) -> OnnxRuntime | Reference:
        content, folder = self._file.content(), self._file.folder
        missing: object = "NumPy has no bfloat16, which the file takes or gives"
        try:
            session = self._engine(content, folder, bounds=self._bounds)
            kinds = {port.type for port in (*session.inputs, *session.outputs)}
            if self._engine is Reference or _BFLOAT16 not in kinds:
                return session
        except EngineError as error:
            if not error.missing_kernel:
                raise
            missing = error
        self._engine = Reference
        self.notes.append(f"onnxruntime cannot run the file ({missing}); onnx.reference did")
        return Reference(content, folder, bounds=self._bounds)

    @cached_property
    def _ports(self) -> tuple[list[Port], int]:
        """The inputs of the file, and how many outputs it has."""
        graph = self._file.proto().graph
        return [port_of_proto(value) for value in own_inputs(graph)], len(graph.output)

    @cached_property
    def _placed(self) -> Sequence[str]:
        """Which tensor of the example each input of the file takes.

        An exporter may leave out inputs that no output depends on.

        Raises:
            EarlyVerdict: with "fail", the file takes other inputs, or puts out more or less.
            UsageError: the example has other sizes than the file takes.
        """
        ports, outputs = self._ports
        given = self._call.tensors()
        if outputs != len(self.outputs):
            text = f"the file puts out {outputs} tensors, the module {len(self.outputs)}"
            raise EarlyVerdict("fail", text)
        names = list(given)
        if len(names) != len(ports):
            names = [name for name in given if self.original.reached([name])]
        if len(names) != len(ports):
            told = ", ".join(port.name for port in ports) or "none"
            text = f"the file takes {len(ports)} inputs ({told}), the module {len(given)} tensors"
            raise EarlyVerdict("fail", text)
        for name, port in zip(names, ports, strict=True):
            _refuse_unlike(port, given[name])
        return names


class _File:
    """A loaded file that takes its inputs as a module does; see `RunnableModel`."""

    def __init__(
        self,
        session: OnnxRuntime | Reference | Float64Model,
        ports: Sequence[Port],
        names: Sequence[str],
        call: Call,
    ) -> None:
        self._session = session
        self._names = {port.name: name for port, name in zip(ports, names, strict=True)}
        self._call = call
        self.outputs: Sequence[str] = ()

    def run(self, feeds: Mapping[str, Array]) -> list[Any]:
        """The outputs in order. Raises `EngineError` where the file does not run."""
        given = self._call.tensors()
        double = isinstance(self._session, Float64Model)
        placed = {}
        for port, name in self._names.items():
            values = feeds[name] if name in feeds else to_numpy(given[name])
            placed[port] = values.astype(np.float64) if double and is_float(values) else values
        try:
            found = self._session.run(placed)
        except EngineError as error:
            raise EngineError(f"the file does not run: {error}") from error
        self.outputs = [f"output {number}" for number in range(len(found))]
        return found


def _refuse_unlike(port: Port, tensor: Tensor) -> None:
    """Raise unless a tensor has the type and the sizes that an input of a file takes."""
    own = f"tensor({_TYPES.get(tensor.dtype, str(tensor.dtype)[6:])})"
    if port.type != own:
        text = f"input {port.name} of the file is {port.type}, the module takes {own} there"
        raise EarlyVerdict("fail", text)
    sizes = zip(port.shape, tensor.shape, strict=False)
    fits = len(port.shape) == tensor.dim() or not port.shape
    if not fits or any(isinstance(size, int) and size not in (0, own) for size, own in sizes):
        raise UsageError(
            f"input {port.name} of the file takes the sizes {list(port.shape)}, and the example "
            f"has {list(tensor.shape)}: give an example of the sizes that the file takes"
        )
