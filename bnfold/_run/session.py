"""Loads and runs ONNX models, and says in plain words why one does not run.

The engine is onnxruntime on the CPU, with every graph optimization off. Some optimizations are
wrong, and a fold must be compared with what the file says. With optimizations on, it runs as users
run it. Where onnxruntime has no kernel for an operator, the reference evaluator of the onnx package
takes its place, for small models. Where memory is plenty, a session may load in the background.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnx
import onnxruntime as ort

from bnfold._onnx import tensors
from bnfold._onnx.files.external import all_tensors
from bnfold._onnx.read.order import put_in_order
from bnfold._run import legacy
from bnfold._run.bounds import UNBOUNDED, Bounds, Exhausted
from bnfold._run.noise import Array
from bnfold._run.providers import CPU, Provider
from bnfold._system import memory

_REFERENCE_LIMIT = 1 << 28
_LARGEST_IN_BACKGROUND = 1 << 28
"""Bytes of the largest model that is loaded in the background."""
_FATAL = 4
_FIRST_RIGHT_BATCH_NORMALIZATION = 14
_Loaded = TypeVar("_Loaded")


class EngineError(Exception):
    """A model cannot be loaded or run; the text is the engine's first meaningful line."""

    def __init__(self, message: str, *, missing_kernel: bool = False) -> None:
        """Keep the message, and whether another engine might do better."""
        super().__init__(message)
        self.missing_kernel = missing_kernel


@dataclass(frozen=True)
class Port:
    """An input or output: its name, its type as onnxruntime writes it, its shape."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class Engine(Protocol):
    """A loaded model."""

    runtime: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Return the outputs in graph order.

        Raises:
            EngineError: the model does not run on these inputs.
            Exhausted: time is up, or memory has run out.
        """


class OnnxRuntime:
    """A silent session of onnxruntime, its optimizations off unless ``optimized``."""

    runtime = f"onnxruntime {ort.__version__}"

    def __init__(
        self,
        source: Path | bytes,
        folder: Path | None = None,
        *,
        optimized: bool = False,
        precise: bool = False,
        provider: Provider = CPU,
        profile: Path | None = None,
        bounds: Bounds = UNBOUNDED,
    ) -> None:
        """Load a file, or a serialized model whose external data lies in `folder`.

        Raises:
            EngineError: the model does not load.
            Exhausted: time is up, or memory has run out.
        """
        bounds.check()
        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        )
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = bounds.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.disable_prepacking", "1")
        if precise:
            options.add_session_config_entry("session.x64quantprecision", "1")
        if folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder)
            )
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        self._bounds = bounds
        register(bounds.libraries, options)
        try:
            self._session = ort.InferenceSession(
                str(source) if isinstance(source, Path) else source,
                options,
                providers=[(provider.full_name, dict(provider.options))],
                enable_fallback=0,  # a fallback would print, and only try the same again
            )
        except Exception as error:
            raise _engine_error(error) from error
        self.active = frozenset(self._session.get_providers())
        self.inputs = tuple(map(_port, self._session.get_inputs()))
        self.outputs = tuple(map(_port, self._session.get_outputs()))

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Return the outputs in graph order; see `Engine.run`."""
        return self._fetch(None, feeds)

    def fetch(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Return some of the outputs; see `Engine.run`."""
        return self._fetch(list(names), feeds) if names else []

    def _fetch(self, names: list[str] | None, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """The named outputs, or all outputs for None; see `Engine.run`."""
        quiet = ort.RunOptions()
        quiet.log_severity_level = _FATAL
        try:
            with self._bounds.ending(quiet):
                outputs: list[Any] = self._session.run(names, dict(feeds), quiet)
        except Exhausted:
            raise
        except Exception as error:
            raise _engine_error(error) from error
        return outputs

    def end_profile(self) -> Path:
        """The path of the profile. It was asked for when the session was made."""
        return Path(self._session.end_profiling())


def register(libraries: Iterable[Path], options: ort.SessionOptions | None = None) -> None:
    """Let a session know the operators of some libraries. Raises `EngineError` where it cannot."""
    options = options or ort.SessionOptions()
    for library in libraries:
        try:
            options.register_custom_ops_library(str(library))
        except Exception as error:  # What it raises has no common base of its own.
            raise _engine_error(error) from error


class Reference:
    """The onnx package's own evaluator. It is slow; models that it runs wrongly are refused."""

    runtime = f"onnx.reference {onnx.__version__}"

    def __init__(
        self, source: Path | bytes, folder: Path | None = None, *, bounds: Bounds = UNBOUNDED
    ) -> None:
        """Load a file, or a serialized model whose external data lies in `folder`.

        Raises:
            EngineError: the model does not load, is too large, or would come out wrong.
            Exhausted: time is up.
        """
        self._bounds = bounds
        bounds.check()
        from onnx.reference import (
            ReferenceEvaluator,
        )  # imported late: it is slow to import, and few need it

        try:
            if isinstance(source, Path):
                model = onnx.load(source, load_external_data=False)
            else:
                model = onnx.load_model_from_string(source)
            put_in_order(model)
            _inline(model, folder or (source.parent if isinstance(source, Path) else None))
        except Exception as error:
            raise _engine_error(error) from error
        if model.ByteSize() > _REFERENCE_LIMIT:
            raise EngineError("too large for the reference evaluator")
        _refuse_known_bugs(model)
        try:
            replaced = legacy.operators(_own_opset(model))
            self._evaluator = ReferenceEvaluator(model, new_ops=replaced)
        except Exception as error:
            raise _engine_error(error) from error
        given = {tensor.name for tensor in model.graph.initializer}
        self.inputs = tuple(
            port_of_proto(value) for value in model.graph.input if value.name not in given
        )
        self.outputs = tuple(map(port_of_proto, model.graph.output))

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Return the outputs in graph order; see `Engine.run`."""
        self._bounds.check()
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = self._evaluator.run(None, dict(feeds))
        except Exception as error:
            raise _engine_error(error) from error
        return list(outputs)


def _inline(model: onnx.ModelProto, folder: Path | None) -> None:
    """Take external data into the model. `onnx.load` refuses symbolic links, which hubs make."""
    for tensor in all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensors.write(tensor, tensors.read(tensor, folder))


def _own_opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators in a model."""
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)


def _refuse_known_bugs(model: onnx.ModelProto) -> None:
    """Raise where the reference evaluator mixes batch statistics into an inference BatchNorm."""
    opset = _own_opset(model)
    if opset >= _FIRST_RIGHT_BATCH_NORMALIZATION:
        return
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and not any(
            attribute.name == "is_test" and attribute.i for attribute in node.attribute
        ):
            raise EngineError(
                f"the reference evaluator computes BatchNormalization of opset {opset} wrongly"
            )


def _engine_error(error: Exception) -> EngineError:
    """The `EngineError` for an error of onnxruntime. Raises `Exhausted` if memory has run out."""
    text = str(error)
    if memory.ran_out(error):
        raise Exhausted("out of memory") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    first = _PLACE.sub("", re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", first))
    newer = f"than {OnnxRuntime.runtime} knows; a newer one may run it"
    if found := _NEWER_FORMAT.search(first):
        first = f"its IR version {found[1]} is later {newer}"
    elif found := _NEWER_OPSET.search(first):
        first = f"opset {found[1]} of {found[2]} is later {newer}"
    return EngineError(first, missing_kernel=found is not None or "NOT_IMPLEMENTED" in text)


_PLACE = re.compile(r"/\S+\.(?:cc|h):\d+ [^()]*\((?:[^()]|\([^()]*\))*\)(?: const)? ")
"""The place in onnxruntime's source in a message. It says nothing to users."""
_NEWER_FORMAT = re.compile(r"Unsupported model IR version: (\d+)")
_NEWER_OPSET = re.compile(r"Opset (\d+) is under development.* for domain (\S+) is till")


def _port(argument: Any) -> Port:
    return Port(argument.name, argument.type, tuple(argument.shape))


def port_of_proto(value: onnx.ValueInfoProto) -> Port:
    """The port of an input or output in a model file."""
    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return Port(value.name, kind, ())
    tensor = value.type.tensor_type
    element = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in tensor.shape.dim
    )
    return Port(value.name, f"tensor({element})", shape)


class BackgroundLoad(Generic[_Loaded]):
    """A load that has begun in the background, if there is an executor for it."""

    def __init__(self, load: Callable[[], _Loaded], executor: Executor | None) -> None:
        self._load = load
        self._future: Future[_Loaded] | None = executor.submit(load) if executor else None

    def get(self) -> _Loaded:
        """The result of the load, once. A second call loads again. Raises what the load raises."""
        future, self._future = self._future, None
        return self._load() if future is None else future.result()


@contextmanager
def background(
    paths: Collection[Path], weights: Collection[Array | None], bounds: Bounds
) -> Iterator[Executor | None]:
    """Yield an executor of one thread for loads in the background, or None.

    None is yielded where models are large, where memory is bounded, or where the user asks for a
    single thread.
    """
    if bounds.threads == 1 or memory.is_bounded() or _size(paths, weights) > _LARGEST_IN_BACKGROUND:
        yield None
        return
    with ThreadPoolExecutor(1, "bnfold") as executor:
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)


def _size(paths: Collection[Path], weights: Collection[Array | None]) -> int:
    """Bytes of the largest file, or of all weights if that is more. Missing files count as 0."""
    sizes = [sum(array.nbytes for array in weights if array is not None)]
    with suppress(OSError):
        sizes += [path.stat().st_size for path in paths]
    return max(sizes)
