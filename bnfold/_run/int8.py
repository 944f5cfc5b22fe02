"""How far a model is from itself in int8, as onnxruntime quantizes it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from bnfold._run.bounds import Bounds, Exhausted
from bnfold._run.drawing import InputSource, UndrawableError, WantedInputs
from bnfold._run.input_sets import InputSet
from bnfold._run.session import EngineError, OnnxRuntime
from bnfold._system import scratch

_SETS = 4
"""How many input sets of a kind are drawn, half of them to calibrate with."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INLINE = 1 << 30
"""Bytes up to which a model is written into one file."""


class NotMeasured(Exception):
    """There is no such error; the text says why."""


def drawn(model: ModelProto, seed: int, wanted: WantedInputs) -> list[list[InputSet]]:
    """Some input sets of every kind that is wanted, all of the likeliest sizes.

    Raises:
        NotMeasured: an input cannot be drawn.
    """
    found: list[list[InputSet]] = []
    try:
        for kind in wanted.flavours:
            sources = (
                InputSource(model, seed + number, WantedInputs((kind,), wanted.dims))
                for number in range(_SETS)
            )
            found.append([one for source in sources for one in islice(source.first(), 1)])
    except UndrawableError as error:
        raise NotMeasured(str(error)) from error
    return found


def last_layers(model: ModelProto) -> list[str]:
    """What the linear operators put out behind which there is no other one, in the main graph.

    What follows them may hide an error: a Softmax that is saturated, an ArgMax.
    """
    producers = {name: node for node in model.graph.node for name in node.output if name}
    stored = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, None] = {}
    left, seen = [output.name for output in model.graph.output], set[str]()
    while left:
        name = left.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        weighted = node.op_type in _LAYERS and any(each in stored for each in node.input)
        if weighted and not node.domain:
            found[name] = None
        else:
            left += node.input
    return sorted(found)


def int8_error(
    model: ModelProto, base_dir: Path | None, sets: Sequence[InputSet], bounds: Bounds
) -> float:
    """The error of a model in int8: one scale for each weight and for each tensor.

    ``base_dir`` is the folder of its external data.

    onnxruntime's ``quantize_static`` makes QuantizeLinear and DequantizeLinear, with weights in
    int8 and tensors in uint8, calibrated on every other input set and run on the rest. The error
    is the root mean square of the difference at `last_layers`, over the deviation there.

    Raises:
        NotMeasured: the model has no such layer, or cannot be run or quantized.
        Exhausted: time is up, or memory has run out.
    """
    with scratch.beside(None) as folder, _quiet():
        ends = last_layers(model)
        if not ends or len(sets) < 1:
            raise NotMeasured("no layer with weights of its own leads to an output")
        copy = ModelProto()
        copy.CopyFrom(model)
        if base_dir is not None:
            onnx.load_external_data_for_model(copy, str(base_dir))
        known = {output.name for output in copy.graph.output}
        copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in ends if n not in known)
        made, small = folder / "float.onnx", folder / "int8.onnx"
        external = copy.ByteSize() > _INLINE
        onnx.save(copy, str(made), save_as_external_data=external, location="float.data")
        del copy
        return _error(made, small, ends, sets[::2], sets[1::2] or sets, external, bounds)


def _error(
    made: Path,
    small: Path,
    ends: Sequence[str],
    calibration: Sequence[InputSet],
    sets: Sequence[InputSet],
    external: bool,
    bounds: Bounds,
) -> float:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    try:
        engine = OnnxRuntime(made, bounds=bounds)
        wanted = [engine.fetch(ends, one.feeds) for one in sets]
        quantize_static(
            str(made),
            str(small),
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            use_external_data_format=external,
        )
        bounds.check()
        engine = OnnxRuntime(small, bounds=bounds)
        found = [engine.fetch(ends, one.feeds) for one in sets]
    except EngineError as error:
        raise NotMeasured(str(error)) from error
    except (Exhausted, MemoryError):
        raise
    except Exception as error:  # What onnxruntime raises has no common base of its own.
        raise NotMeasured(f"onnxruntime does not quantize it: {error}") from error
    parts = [
        _apart([one[k] for one in found], [one[k] for one in wanted]) for k in range(len(ends))
    ]
    known = [part for part in parts if math.isfinite(part)]
    if not known:
        raise NotMeasured("its last layers put out nothing that varies")
    return math.sqrt(sum(part**2 for part in known) / len(known))


def _apart(found: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> float:
    """The root mean square of a difference, over the deviation; NaN where nothing varies."""
    have, want = (np.concatenate([np.ravel(a) for a in each]) for each in (found, wanted))
    deviation = float(np.std(want, dtype=np.float64))
    if not deviation > 0 or have.shape != want.shape:
        return math.nan
    return float(np.sqrt(np.mean((have.astype(np.float64) - want) ** 2))) / deviation


class _Reader:
    """Hands input sets to onnxruntime's calibration, one by one."""

    def __init__(self, sets: Sequence[InputSet]) -> None:
        self._left = iter(sets)

    def get_next(self) -> Any:
        """The next inputs; None behind the last ones."""
        one = next(self._left, None)
        return None if one is None else dict(one.feeds)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let onnxruntime's quantization say nothing: it gives advice for other models."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
