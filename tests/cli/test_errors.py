"""Whatever is wrong with what was given: one line says what and where, and no file is left."""

from __future__ import annotations

import os
import random
import resource
import shutil
import stat
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper

from . import examples
from .command import COMMAND, bnfold, files_end_at, process, refused, tree


@pytest.fixture
def unchanged(tmp_path):
    """Hold the folder to what it was at the end of the test's own preparations."""
    before = {}
    yield lambda: before.update(tree(tmp_path))
    assert before, "the test has to say when it is ready"
    assert tree(tmp_path) == before


# --- the model ---------------------------------------------------------------------------------


def cut_off(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_nodes(data: bytes) -> bytes:
    made = onnx.ModelProto.FromString(data)
    del made.graph.node[:]
    return made.SerializeToString()


def without_graph(data: bytes) -> bytes:
    made = onnx.ModelProto.FromString(data)
    made.ClearField("graph")
    return made.SerializeToString()


def with_a_cycle(data: bytes) -> bytes:
    made = onnx.ModelProto.FromString(data)
    made.graph.node[0].input[0] = "b1"
    return made.SerializeToString()


def with_a_name_in_latin1(data: bytes) -> bytes:
    return data.replace(b"bn1", b"b\xe91")


def with_short_weights(data: bytes) -> bytes:
    made = onnx.ModelProto.FromString(data)
    tensor = next(t for t in made.graph.initializer if t.name == "bn1.mean")
    tensor.raw_data = tensor.raw_data[:-4]
    return made.SerializeToString()


def without_an_output(data: bytes) -> bytes:
    made = onnx.ModelProto.FromString(data)
    del made.graph.node[1].output[:]
    return made.SerializeToString()


def without_a_weight(data: bytes) -> bytes:
    made = onnx.ModelProto.FromString(data)
    del made.graph.node[0].input[1:]
    return made.SerializeToString()


def without_parameters(data: bytes) -> bytes:
    made = onnx.ModelProto.FromString(data)
    del made.graph.node[1].input[3:]
    return made.SerializeToString()


@pytest.mark.parametrize(
    "damage, words",
    [
        (cut_off, "is not an ONNX model, or is cut off"),
        (lambda data: b"", "is empty"),
        (lambda data: b"{'a': 1}\n" * 9, "is not an ONNX model"),
        (lambda data: b"PK\x03\x04 zip", "is not an ONNX model"),
        (without_graph, "holds no graph"),
        (without_nodes, "holds no operators"),
        (with_a_cycle, "cycle through conv1, bn1"),
        (with_a_name_in_latin1, "is not UTF-8"),
        (with_short_weights, "'bn1.mean' holds 28 bytes, its shape [8] needs 32"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_model(damage, words, model, tmp_path, unchanged):
    model.write_bytes(damage(model.read_bytes()))
    unchanged()
    refused(bnfold(model, "-o", tmp_path / "out.onnx"), str(model), words)


@pytest.mark.parametrize("damage", [without_an_output, without_a_weight, without_parameters])
def test_a_malformed_graph_is_not_a_defect(damage, model, unchanged):
    """What the plan can work around it may; what it cannot is the model's fault, not bnfold's."""
    model.write_bytes(damage(model.read_bytes()))
    unchanged()
    run = bnfold(model)
    assert "defect" not in run.err
    if run.code == 2:
        refused(
            run, str(model), "is not a valid ONNX model" if damage != without_an_output else "b1"
        )


def test_models_drawn_at_random_and_damaged(tmp_path):
    """In one process, for there are many: a damaged model is refused, never a crash."""
    script = """
import sys
from pathlib import Path
from bnfold._errors import UsageError
from bnfold._pipeline.models import fold_file
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        fold_file(path, None, verify=False, inputs=None, progress=lambda step: None)
    except UsageError as error:
        assert path.name in str(error) or "external data" in str(error), (path, error)
    except Exception as error:
        raise SystemExit(f"{path}: {type(error).__name__}: {error}")
"""
    rng = random.Random(0)
    intact = examples.foldable().SerializeToString()
    for number in range(200):
        made = onnx.ModelProto.FromString(intact)
        for _ in range(rng.randrange(1, 4)):
            _damage(made, rng)
        (tmp_path / f"fields{number:03}.onnx").write_bytes(made.SerializeToString())
        data = bytearray(intact)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / f"bytes{number:03}.onnx").write_bytes(bytes(data))
    run = process(tmp_path, command=(sys.executable, "-W", "ignore", "-c", script))
    assert (run.code, run.out, run.err) == (0, "", "")


def _damage(made: onnx.ModelProto, rng: random.Random) -> None:
    """Make one field of a model wrong."""
    graph = made.graph
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    names = [name for n in graph.node for name in n.output]
    kind = rng.randrange(11)
    if kind == 0 and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif kind == 1:
        del node.output[:]
    elif kind == 2 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(["", "nowhere", *names])
    elif kind == 3 and node.output:
        node.output[0] = rng.choice(["", "x", *names])
    elif kind == 4:
        kinds = ["", "If", "Gemm", "Conv", "MatMul", "Constant", "Reshape", "BatchNormalization"]
        node.op_type = rng.choice(kinds)
    elif kind == 5:
        del tensor.dims[:]
        tensor.dims.extend(rng.choice([0, 1, 3, 8, -1, 1 << 40]) for _ in range(rng.randrange(5)))
    elif kind == 6:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif kind == 7:
        tensor.data_type = rng.randrange(27)
    elif kind == 8:
        tensor.name = rng.choice(["", "x", "conv1.w"])
    elif kind == 9:
        made.opset_import[0].version = rng.choice([-3, 0, 1, 6, 99])
    elif node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.type = rng.randrange(12)


def test_a_folder(tmp_path, unchanged):
    (tmp_path / "folder").mkdir()
    unchanged()
    refused(bnfold(tmp_path / "folder"), str(tmp_path / "folder"), "it is a folder")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no devices here")
def test_a_device_that_never_ends():
    memory = (4 << 30, 4 << 30)
    run = process("/dev/zero", before=lambda: resource.setrlimit(resource.RLIMIT_AS, memory))
    refused(run, "/dev/zero", "not a regular file")


def test_no_permission_to_read(bound, model, tmp_path, unchanged):
    unchanged()
    model.chmod(0)
    refused(process(model, command=bound), str(model), "permission denied")
    model.chmod(0o644)


def test_no_permission_to_read_external_data(bound, external, tmp_path, unchanged):
    """Found when the data is copied, and the blame is not put on the output."""
    (tmp_path / "out").mkdir()
    unchanged()
    (tmp_path / "two.bin").chmod(0)
    run = process(external, "-o", tmp_path / "out" / "o.onnx", "--no-verify", command=bound)
    (tmp_path / "two.bin").chmod(0o644)
    refused(run, "cannot read", "two.bin", "permission denied")


def test_missing_external_data(external, tmp_path, unchanged):
    (tmp_path / "two.bin").unlink()
    unchanged()
    run = bnfold(external, "-o", tmp_path / "out.onnx")
    refused(run, str(tmp_path / "two.bin"), "'conv2.w'", "there is no such file")


@pytest.mark.parametrize("length", ["given", "left out"])
def test_external_data_too_short(length, external, tmp_path, unchanged):
    if length == "left out":
        made = onnx.load(external, load_external_data=False)
        for tensor in made.graph.initializer:
            entries = [entry for entry in tensor.external_data if entry.key != "length"]
            del tensor.external_data[:]
            tensor.external_data.extend(entries)
        external.write_bytes(made.SerializeToString())
    with (tmp_path / "two.bin").open("r+b") as file:
        file.truncate(2303)
    unchanged()
    run = bnfold(external, "-o", tmp_path / "out.onnx")
    refused(run, str(tmp_path / "two.bin"), "2303 bytes", "'conv2.w'", "cut off")


@pytest.mark.parametrize("value", ["-1", "many", ""])
def test_external_data_at_no_place(value, external, tmp_path, unchanged):
    made = onnx.load(external, load_external_data=False)
    tensor = next(t for t in made.graph.initializer if t.name == "conv1.w")
    next(entry for entry in tensor.external_data if entry.key == "offset").value = value
    external.write_bytes(made.SerializeToString())
    unchanged()
    refused(bnfold(external), "'conv1.w'", f"offset {value!r}")


def test_external_data_in_no_file(external, tmp_path, unchanged):
    made = onnx.load(external, load_external_data=False)
    tensor = next(t for t in made.graph.initializer if t.name == "conv1.w")
    tensor.external_data.remove(next(e for e in tensor.external_data if e.key == "location"))
    external.write_bytes(made.SerializeToString())
    unchanged()
    refused(bnfold(external), "'conv1.w'", "has no location")


@pytest.mark.parametrize("location", ["../two.bin", "/two.bin"])
def test_external_data_outside_the_folder(location, external, tmp_path, unchanged):
    made = onnx.load(external, load_external_data=False)
    tensor = next(t for t in made.graph.initializer if t.name == "conv1.w")
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    external.write_bytes(made.SerializeToString())
    unchanged()
    refused(bnfold(external), "'conv1.w'", f"{location!r} leads out of the model's folder")


def test_external_data_in_a_folder(external, tmp_path, unchanged):
    (tmp_path / "two.bin").unlink()
    (tmp_path / "two.bin").mkdir()
    unchanged()
    refused(bnfold(external), str(tmp_path / "two.bin"), "it is a folder")


# --- where the output goes ---------------------------------------------------------------------


def test_a_missing_folder(model, tmp_path, unchanged):
    unchanged()
    target = tmp_path / "none" / "out.onnx"
    refused(bnfold(model, "-o", target), str(target), f"there is no folder {target.parent}")


def test_a_file_for_a_folder(model, tmp_path, unchanged):
    unchanged()
    refused(bnfold(model, "-o", model / "out.onnx"), str(model / "out.onnx"))


def test_an_output_that_is_a_folder(model, tmp_path, unchanged):
    (tmp_path / "out.onnx").mkdir()
    unchanged()
    refused(bnfold(model, "-o", tmp_path / "out.onnx"), "out.onnx", "it is a folder")


def test_a_folder_that_is_not_writable(bound, model, tmp_path, unchanged):
    (tmp_path / "closed").mkdir()
    unchanged()
    (tmp_path / "closed").chmod(0o555)
    target = tmp_path / "closed" / "out.onnx"
    run = process(model, "-o", target, command=bound)
    (tmp_path / "closed").chmod(0o755)
    refused(run, str(target), "not writable")


def test_a_pipe_is_not_replaced(model, tmp_path):
    """Nor is a device, which for root would be gone: so it is a pipe that the test puts at risk."""
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    (tmp_path / "link.onnx").symlink_to(pipe)
    for target in (pipe, tmp_path / "link.onnx"):
        refused(bnfold(model, "-o", target), str(target), "not a regular file")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert (tmp_path / "link.onnx").is_symlink()


@pytest.mark.skipif(not os.path.lexists("/dev/stdout"), reason="no /dev/stdout here")
def test_standard_output_in_a_file_is_still_a_device(tmp_path):
    """/dev/stdout then leads to a regular file; only the check is run, nothing is written."""
    script = """
import sys
from pathlib import Path
from bnfold._errors import UsageError
from bnfold._system.paths import check_writable
try:
    check_writable(Path("/dev/stdout"))
except UsageError as error:
    print(error, file=sys.stderr)
"""
    with (tmp_path / "out").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=file, stderr=subprocess.PIPE, check=True
        )
    assert done.stderr == b"cannot write /dev/stdout: it is not a regular file\n"


def test_a_name_too_long(model, tmp_path, unchanged):
    unchanged()
    refused(bnfold(model, "-o", tmp_path / ("n" * 300)), "cannot write", "nnn")


def test_a_write_that_fails_halfway(model, tmp_path, unchanged):
    """A limit on the size of files stands in for a disk that is full."""
    unchanged()
    with files_end_at(2000):
        run = bnfold(model, "-o", tmp_path / "out.onnx")
    refused(run, "cannot write", "out.onnx")


@pytest.fixture
def small(tmp_path) -> tuple[str, ...]:
    """The command, for which the folder ``small`` is a file system of 16 kB."""
    script = 'mount -t tmpfs -o size=16k tmpfs "$0" && "$@"; code=$?; ls -A "$0"; exit $code'
    (tmp_path / "small").mkdir()
    inside = ("unshare", "--mount", "sh", "-c", script, str(tmp_path / "small"))
    if shutil.which("unshare") is None or process(command=(*inside, "true")).code:
        pytest.skip("no file system can be mounted here")
    return (*inside, *COMMAND)


def test_a_full_disk(small, external, tmp_path, unchanged):
    """What is left on it would be listed."""
    with (tmp_path / "two.bin").open("ab") as file:
        file.write(bytes(50_000))
    unchanged()
    run = process(external, "-o", tmp_path / "small" / "out.onnx", command=small)
    refused(run, "out.onnx", "no space left on the device")


# --- inputs ------------------------------------------------------------------------------------


def image(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"image": image(2, 3, 8, 8)}, ["the model's inputs are ['x']", "got ['image']"]),
        ({"x": image(2, 3, 8, 8), "z": image(1)}, ["['x', 'z']"]),
        ({"x": image(2, 3, 8, 8).astype(np.float64)}, ["x is float64", "takes float32"]),
        ({"x": image(2, 3, 9, 8)}, ["[2, 3, 9, 8]", "[2, 3, 8, 8]"]),
        ({"x": image(3, 8, 8)}, ["[3, 8, 8]", "[2, 3, 8, 8]"]),
        ({}, ["holds no arrays"]),
        ({"x": np.array([{"a": 1}], dtype=object)}, ["not an .npz file of plain arrays"]),
    ],
    ids=["missing", "too many", "dtype", "shape", "rank", "none", "pickled"],
)
def test_inputs_that_do_not_fit(arrays, words, model, tmp_path, unchanged):
    np.savez(tmp_path / "in.npz", **arrays)
    unchanged()
    run = bnfold(model, "-o", tmp_path / "out.onnx", "--inputs", tmp_path / "in.npz")
    refused(run, "in.npz", *words)


@pytest.mark.parametrize(
    "content",
    [b"", b"x,y\n1,2\n", b"PK\x03\x04 cut off", "an .npy file", "no array within", "damaged"],
)
def test_a_file_that_is_no_npz(content, model, tmp_path, unchanged):
    path = tmp_path / "in.npz"
    if content == "an .npy file":
        with path.open("wb") as file:
            np.save(file, image(2, 3, 8, 8))
    elif content == "no array within":
        shutil.make_archive(str(tmp_path / "in"), "zip", tmp_path, "m.onnx")
        (tmp_path / "in.zip").rename(path)
    elif content == "damaged":
        np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(2, 3, 8, 8)))
        data = bytearray(path.read_bytes())
        data[200:300] = bytes(100)
        path.write_bytes(bytes(data))
    else:
        path.write_bytes(content)
    unchanged()
    run = bnfold(model, "-o", tmp_path / "out.onnx", "--inputs", path)
    refused(run, str(path), "not an .npz file of plain arrays")


def test_inputs_that_are_not_there(model, tmp_path, unchanged):
    unchanged()
    run = bnfold(model, "-o", tmp_path / "out.onnx", "--inputs", tmp_path / "in.npz")
    refused(run, str(tmp_path / "in.npz"), "there is no such file")


def test_inputs_that_fit_are_used(model, tmp_path):
    """The one way to see that they were."""
    np.savez(tmp_path / "in.npz", x=np.full((2, 3, 8, 8), np.nan, np.float32))
    run = bnfold(model, "--inputs", tmp_path / "in.npz")
    assert run.code == 0
    assert "y on in.npz inputs: pass, not compared (proved; no finite value)" in run.out


def test_inputs_and_no_check_to_use_them(model, tmp_path, unchanged):
    np.savez(tmp_path / "in.npz", x=image(2, 3, 8, 8))
    unchanged()
    refused(bnfold(model, "--no-verify", "--inputs", tmp_path / "in.npz"), "--no-verify")


def test_a_negative_seed(model):
    run = bnfold(model, "--seed", "-1")
    assert (run.code, run.out) == (2, "")
    assert "--seed" in run.err


# --- what has no place in a graph --------------------------------------------------------------


def test_names_that_a_terminal_would_obey(tmp_path):
    """Names come from the file and are shown as text, on one line."""
    made = examples.foldable()
    for node in made.graph.node:
        if node.op_type == "BatchNormalization":
            node.name = f"\x1b[31m{node.name}\r\n\x07"
    path = examples.save(made, tmp_path / "m.onnx")
    run = bnfold(path, "-v")
    assert run.code == 0
    assert not set("\x1b\r\x07") & set(run.out)
    assert r"\x1b[31mbn1\r\n\x07 → conv1" in run.out


def test_an_operator_that_is_not_in_any_opset(tmp_path):
    made = examples.foldable()
    made.graph.node.append(helper.make_node("Nonsense", ["y"], ["z"]))
    run = bnfold(examples.save(made, tmp_path / "m.onnx"))
    assert run.code == 0
    assert "onnxruntime does not run Nonsense" in run.out
