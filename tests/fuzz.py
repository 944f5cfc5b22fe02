"""A fuzzer: models with something wrong in them, found by mutation of right ones.

``python -m tests.fuzz 20000 [--seed S]`` mutates models of the golden plans, in their structure
(fields, shapes, types, attributes, names, subgraphs) and in their bytes, and holds bnfold to this:

- planning and folding end, and raise `UsageError` or nothing;
- neither takes long or much memory, and neither ends the process;
- a model that onnxruntime runs, folded, runs and gives the same.

Each case is made from its number alone: ``python -m tests.fuzz --case N`` runs it here, with its
traceback. The cases run in processes of their own, so that a crash is a finding like any other.
"""

from __future__ import annotations

import argparse
import pickle
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto

import bnfold

from .golden.models import models
from .graphs import feeds

SECONDS = 20
MEMORY = 3 << 30
BATCH = 250
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
)
_OPERATORS = """
Add Mul Div Sub Neg Conv ConvTranspose Gemm MatMul BatchNormalization Relu Clip Pad Slice Concat
Split Reshape Transpose Flatten Identity Cast If Loop AveragePool MaxPool Resize Expand Gather
Softmax LayerNormalization InstanceNormalization ReduceMean DequantizeLinear QuantizeLinear
"""

_RUNS, _RUNS_FOLDED = "runs", "runs-folded"


class Wrong(Exception):
    """What bnfold may not do with any model; the text says what."""


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
    rng = random.Random(number)
    made = ModelProto.FromString(bases[rng.randrange(len(bases))])
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        _mutate(made, rng)
    if rng.random() < 0.1:
        data = bytearray(made.SerializeToString())
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            return ModelProto.FromString(bytes(data))
        except DecodeError:
            return None
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


def check(made: ModelProto) -> str:
    """What became of a model: "refused", "folded", "same" or "checked". Raises `Wrong`.

    Prints a word before the model is run, and another before the folded one is. What ends the
    process behind the first is onnxruntime; behind the second it is the fold.
    """
    raw = made.SerializeToString()
    try:
        plan = bnfold.plan(made)
        folded = bnfold.fold(made)
    except bnfold.UsageError:
        return "refused"
    if made.SerializeToString() != raw:
        raise Wrong("the model that was given is changed")
    if not plan.folds:
        return "same"
    print(_RUNS, end=" ", flush=True)
    given = _given(made)
    before = _outputs(raw, given)
    if before is None:
        return "folded"
    print(_RUNS_FOLDED, end=" ", flush=True)
    after = _outputs(folded.SerializeToString(), given)
    if after is None:
        raise Wrong("the model runs in onnxruntime, and the folded one does not")
    for name, one, other in zip([o.name for o in made.graph.output], before, after, strict=True):
        _compare(name, one, other)
    return "checked"


def _given(made: ModelProto) -> dict[str, Any]:
    try:
        return feeds(made, sizes=2)
    except Exception:  # Nothing can be drawn for these types or sizes.
        return {}


def _outputs(raw: bytes, given: dict[str, Any]) -> list[Any] | None:
    """The outputs of a model without optimizations; None where onnxruntime does not run it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        wanted = {value.name for value in session.get_inputs()}
        run = ort.RunOptions()
        run.log_severity_level = 4
        kept = {name: array for name, array in given.items() if name in wanted}
        return list(session.run(None, kept, run))
    except Exception:  # onnxruntime raises many classes.
        return None


def _compare(name: str, one: Any, other: Any) -> None:
    """Raise `Wrong` where floats differ by more than the arithmetic of float16 explains.

    Outputs of other types are not compared.
    """
    if not isinstance(one, np.ndarray) or one.dtype.kind != "f":
        return
    if one.shape != np.shape(other):
        raise Wrong(f"{name} has the shape {np.shape(other)}, not {one.shape}")
    left, right = one.astype(np.float64), np.asarray(other).astype(np.float64)
    if not np.isfinite(left).all():
        return  # What is infinite on the way depends on the order of operations.
    size = np.abs(left).max(initial=0.0)
    if size > 1e30 or (size and size < 1e-30):
        return
    worst = np.abs(left - right).max(initial=0.0)
    if not worst <= 2e-2 * size + 1e-6:
        raise Wrong(f"{name} differs by {worst:.3g} of {size:.3g}")


def work(bases: Sequence[bytes], first: int, count: int) -> None:
    """Run some cases, and print a line for each: its number ahead of it, then what became of it."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _late)
    for number in range(first, first + count):
        print(number, end=" ", flush=True)
        made = mutated(bases, number)
        begun = time.monotonic()
        signal.alarm(SECONDS)
        try:
            print("no-model" if made is None else check(made), flush=True)
        except Wrong as error:
            print(f"WRONG {error}", flush=True)
        except MemoryError:
            print("WRONG out of memory", flush=True)
        except _Late:
            print(f"WRONG more than {SECONDS} s, {time.monotonic() - begun:.0f}", flush=True)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = str(error).partition("\n")[0][:120]
            line = f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"
            print(f"WRONG {line}", flush=True)
        finally:
            signal.alarm(0)


class _Late(BaseException):
    """A case takes too long."""


def _late(*_: object) -> None:
    raise _Late


def search(first: int, count: int) -> tuple[Counter[str], dict[int, str]]:
    """Run cases in processes of their own. Gives what became of them, and what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "corpus"
        stored.write_bytes(pickle.dumps(corpus()))
        return _search(stored, first, first + count)


def _search(stored: Path, number: int, last: int) -> tuple[Counter[str], dict[int, str]]:
    ends, wrong = Counter[str](), dict[int, str]()
    while number < last:
        size = min(BATCH, last - number)
        asked = ["--work", str(stored), str(number), str(size)]
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", *asked]
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
            try:
                process.wait(60 + SECONDS * size)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            out.seek(0)
            lines = out.read().splitlines()
        done = count_ends(lines, process.returncode, ends, wrong)
        if done is None:
            raise SystemExit(f"no case ran: {' '.join(command)}")
        number = done + 1
    return ends, wrong


def count_ends(
    lines: Sequence[str], code: int, ends: Counter[str], wrong: dict[int, str]
) -> int | None:
    """Count what a process that ended with `code` has printed. Gives its last case, or None."""
    done = None
    for line in lines:
        head, _, end = line.partition(" ")
        if not head.isdigit():
            continue
        done = int(head)
        if "WRONG " in end:
            wrong[done] = end.partition("WRONG ")[2]
        elif not end.strip():
            wrong[done] = f"the process ended ({code})"
        elif end.split()[-1] == _RUNS_FOLDED:
            wrong[done] = f"the folded model ends the process ({code}), the original does not"
        elif end.split()[-1] == _RUNS:
            ends["crashes onnxruntime"] += 1
        else:
            ends[end.split()[-1]] += 1
    return done


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help="run one case in this process")
    asked = parser.parse_args()
    if asked.work:
        stored, first, count = asked.work
        work(pickle.loads(Path(stored).read_bytes()), int(first), int(count))
        return 0
    if asked.case is not None:
        made = mutated(corpus(), asked.case)
        assert made is not None
        onnx.save(made, f"case-{asked.case}.onnx")
        print(check(made))
        return 0
    ends, wrong = search(asked.seed * 10_000_000, asked.count)
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    for number, what in wrong.items():
        print(f"case {number}: {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
