"""Loads and runs ONNX models, and says in plain words why one does not run.

The engine is onnxruntime on the CPU, with every graph optimization off. Some optimizations are
wrong, and a fold must be compared with what the file says. With optimizations on, it runs as users
run it. Where onnxruntime has no kernel for an operator, the reference evaluator of the onnx package
takes its place, for small models. Where memory is plenty, a session may load in the background.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnxruntime as ort

from bnfold._run.bounds import UNBOUNDED, Bounds, Exhausted
from bnfold._run.input_sets import Port
from bnfold._run.noise import Array
from bnfold._run.providers import CPU, Provider
from bnfold._system import memory, scratch

_LARGEST_IN_BACKGROUND = 1 << 25
"""Bytes of the largest model that is loaded in the background."""
_FATAL = 4
_Loaded = TypeVar("_Loaded")


def hush() -> None:
    """Let onnxruntime print nothing by itself in this process. What it raises is told anyway."""
    ort.set_default_logger_severity(_FATAL)


class EngineError(Exception):
    """A model cannot be loaded or run; the text is the engine's first meaningful line."""

    def __init__(self, message: str, *, missing_kernel: bool = False) -> None:
        """Keep the message, and whether another engine might do better."""
        super().__init__(message)
        self.missing_kernel = missing_kernel


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
            raise engine_error(error) from error
        # It would keep them for another try with other providers, which nobody asks for here.
        self._session._model_bytes = None
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
            raise engine_error(error) from error
        for number, output in enumerate(outputs):
            if isinstance(output, np.ndarray) and not output.flags.owndata:
                # It lies in memory of the session, which would live as long as this one output.
                outputs[number] = output.copy()
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
            raise engine_error(error) from error


def engine_error(error: Exception) -> EngineError:
    """The `EngineError` for an error of onnxruntime. Raises `Exhausted` if memory has run out."""
    text = str(error)
    if memory.ran_out(error):
        raise Exhausted("out of memory") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    first = re.sub(_PLACE, "", re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", first))
    newer = f"than {OnnxRuntime.runtime} knows; a newer one may run it"
    if found := re.search(_NEWER_FORMAT, first):
        first = f"its IR version {found[1]} is later {newer}"
    elif found := re.search(_NEWER_OPSET, first):
        first = f"opset {found[1]} of {found[2]} is later {newer}"
    missing = found is not None or any(words in text for words in _NO_KERNEL)
    return EngineError(first, missing_kernel=missing)


_PLACE = r"/\S+\.(?:cc|h):\d+ [^()]*\((?:[^()]|\([^()]*\))*\)(?: const)? "
"""The place in onnxruntime's source in a message. It says nothing to users."""
_NO_KERNEL = ("NOT_IMPLEMENTED", "are not supported. If you need support create a github issue")
"""What onnxruntime says of a valid operator that it does not run; the second of `layout` = 1."""
_NEWER_FORMAT = r"Unsupported model IR version: (\d+)"
_NEWER_OPSET = r"Opset (\d+) is under development.* for domain (\S+) is till"


def _port(argument: Any) -> Port:
    return Port(argument.name, argument.type, tuple(argument.shape))


class BackgroundLoad(Generic[_Loaded]):
    """A load that has begun in the background, if there is an executor for it."""

    def __init__(self, load: Callable[[], _Loaded], executor: Executor | None) -> None:
        self._load = load
        self._future: Future[_Loaded] | None = executor.submit(load) if executor else None

    @property
    def is_due(self) -> bool:
        """Whether nothing has been loaded yet that waits to be asked for."""
        return self._future is None

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
    single thread. Where models are large, free memory is given back from here on: each thread of a
    session has some of its own, and would keep it.
    """
    is_large = _size(paths, weights) > _LARGEST_IN_BACKGROUND
    if is_large:
        memory.give_back(of_process=scratch.is_watched())
    if bounds.threads == 1 or memory.is_bounded() or is_large:
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
