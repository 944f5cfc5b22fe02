"""Mutates models: one thing or a few, anywhere in the message, or in its bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto

from ..golden.models import models

LARGEST = 40_000
"""Bytes of the largest model that is mutated: small ones are quick, and hold as many kinds."""
SOURCES = ("own", "stored", "folds", "carried", "convolutions")
_INTEGERS = (-(1 << 63), -(1 << 31), -7, -2, -1, 0, 1, 2, 3, 4, 5, 8, 17, 1 << 16, 1 << 31, 1 << 62)
_FLOATS = (0.0, -0.0, -1.0, 1e-45, 1e-38, 1e38, float("inf"), float("-inf"), float("nan"), 0.5)
_TEXTS = (
    "",
    "x",
    "y",
    "nowhere",
    "NOTSET",
    "SAME_UPPER",
    "ai.onnx",
    "com.microsoft",
    "\u202e",
    "a\n",
    "\n::error::x",
    "\x1b[31m",
    "<script>'\"&",
    "| [x](http://x.org) `",
)
_OPERATORS = """
Add Mul Div Sub Neg Conv ConvTranspose Gemm MatMul BatchNormalization Relu Clip Pad Slice Concat
Split Reshape Transpose Flatten Identity Cast If Loop AveragePool MaxPool Resize Expand Gather
Softmax LayerNormalization InstanceNormalization ReduceMean DequantizeLinear QuantizeLinear
"""


def corpus() -> list[bytes]:
    """The models that are mutated, as bytes: those of the golden plans that are small files."""
    found = []
    for name, build in models().items():
        if name.partition("/")[0] in SOURCES:
            given = build().model
            if isinstance(given, ModelProto) and given.ByteSize() <= LARGEST:
                found.append(given.SerializeToString())
    return found


def mutated(bases: Sequence[bytes], number: int) -> ModelProto | None:
    """The model of a case; None where its bytes are no model any more."""
    made = mutated_bytes(bases, number)
    try:
        return ModelProto.FromString(made) if isinstance(made, bytes) else made
    except DecodeError:
        return None


def mutated_bytes(bases: Sequence[bytes], number: int) -> ModelProto | bytes:
    """The model of a case, or, where bytes are changed besides, these."""
    rng = random.Random(number)
    made = ModelProto.FromString(bases[rng.randrange(len(bases))])
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        _mutate(made, rng)
    if rng.random() < 0.1:
        data = bytearray(made.SerializeToString())
        for _ in range(rng.randrange(1, 4) if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    return made


def _mutate(made: ModelProto, rng: random.Random) -> None:
    """Change one thing in a model. Graph, nodes and tensors are met more often than the rest."""
    places = list(_messages(made))
    message = rng.choice(places)
    while rng.random() < 0.6 and message.DESCRIPTOR.name not in _OFTEN:
        message = rng.choice(places)
    fields = [field for field in message.DESCRIPTOR.fields if field.name not in ("doc_string",)]
    held = [field for field, _ in message.ListFields() if field in fields]
    field = rng.choice(held if held and rng.random() < 0.85 else fields)
    if _is_repeated(field):
        _mutate_list(message, field, made, rng)
    elif field.message_type is not None:
        if message.HasField(field.name) and rng.random() < 0.3:
            message.ClearField(field.name)
        elif rng.random() < 0.5:
            _swap_in(getattr(message, field.name), made, rng)
    elif rng.random() < 0.1:
        message.ClearField(field.name)
    else:
        _set(message, field, _value(field, getattr(message, field.name), message, made, rng))


_OFTEN = ("NodeProto", "AttributeProto", "TensorProto", "GraphProto", "Dimension")


def _is_repeated(field: FieldDescriptor) -> bool:
    known = getattr(field, "is_repeated", None)  # Older protobufs have a label instead.
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if known is None else known)


def _messages(message: Message) -> Iterator[Message]:
    """A message, and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if _is_repeated(field) else (value,):
                yield from _messages(inner)


def _swap_in(message: Message, made: ModelProto, rng: random.Random) -> None:
    """Put another message of the same kind out of the model in the place of one."""
    alike = [m for m in _messages(made) if m.DESCRIPTOR is message.DESCRIPTOR]
    if not alike:
        return
    other = type(message)()
    other.CopyFrom(rng.choice(alike))
    message.CopyFrom(other)


def _mutate_list(
    message: Message, field: FieldDescriptor, made: ModelProto, rng: random.Random
) -> None:
    items: Any = getattr(message, field.name)
    kind = rng.randrange(5)
    if kind == 0 and len(items):
        del items[rng.randrange(len(items))]
    elif kind == 1 and len(items):  # once more
        position = rng.randrange(len(items))
        items.append(items[position])
    elif kind == 2 and len(items) > 1:  # in another order
        first, second = rng.sample(range(len(items)), 2)
        copies = list(items)
        copies[first], copies[second] = copies[second], copies[first]
        kept = [_copied(each) for each in copies]
        del items[:]
        items.extend(kept)
    elif field.message_type is not None:
        if len(items):
            _swap_in(rng.choice(items), made, rng)
    elif len(items):
        position = rng.randrange(len(items))
        value = _value(field, items[position], message, made, rng)
        try:
            items[position] = value
        except (TypeError, ValueError):
            return
    else:
        try:
            items.append(_value(field, None, message, made, rng))
        except (TypeError, ValueError):
            return


def _copied(value: Any) -> Any:
    if not isinstance(value, Message):
        return value
    copy = type(value)()
    copy.CopyFrom(value)
    return copy


def _value(
    field: FieldDescriptor, old: Any, message: Message, made: ModelProto, rng: random.Random
) -> Any:
    if field.enum_type is not None:
        return rng.randrange(30)
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        data = bytes(old or b"")
        if field.name != "raw_data" or len(data) < 4 or rng.random() < 0.3:
            return data[: rng.randrange(len(data) + 1)]
        array = np.frombuffer(data[: len(data) // 4 * 4], np.float32).copy()
        array[rng.randrange(max(array.size, 1)) : rng.randrange(1, array.size + 1)] = rng.choice(
            (*_FLOATS, 1.5, -2.0)
        )
        return array.tobytes() + data[len(data) // 4 * 4 :]
    if field.type == FieldDescriptor.TYPE_STRING:
        if field.name == "op_type":
            return rng.choice(_OPERATORS.split())
        names = [name for node in made.graph.node for name in (*node.input, *node.output)]
        return rng.choice((*_TEXTS, *names))
    if isinstance(old, int) and rng.random() < 0.4:
        return old + rng.choice((-1, 1, 2))
    return rng.choice(_INTEGERS)


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    try:
        setattr(message, field.name, value)
    except (TypeError, ValueError):
        message.ClearField(field.name)
