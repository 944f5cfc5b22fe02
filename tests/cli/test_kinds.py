"""What is given in place of a model: one line says what it is, and what to do."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from .. import runtimes
from . import examples
from .command import bnfold, process, refused

INTACT = examples.foldable().SerializeToString()
ZEROS = np.zeros((3, 4), np.float32)


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return file.getvalue()


def safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(32)


KINDS = {
    "lfs.onnx": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        ["Git LFS pointer", "git lfs pull"],
    ),
    "annex.onnx": (b"/annex/objects/SHA256E-s9--4d7a.onnx\n", ["git-annex", "git annex get"]),
    "page.onnx": (b"<!DOCTYPE html>\n<html></html>", ["web page", "download the file"]),
    "late.onnx": (b"\n\n  <HTML lang='en'><body>", ["web page"]),
    "denied.onnx": (b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>", ["XML"]),
    "vino.xml": (b'<?xml version="1.0"?>\n<net name="m" version="11">', ["OpenVINO"]),
    "scripted.pt": (zipped("m/data.pkl", "m/code/a.py", "m/constants.pkl"), ["TorchScript"]),
    "weights.pth": (zipped("a/data.pkl", "a/data/0"), ["PyTorch checkpoint", "torch.onnx.export"]),
    "old.pt": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02", ["PyTorch checkpoint"]),
    "program.onnx": (zipped("m/archive_format", "m/models/model.json"), ["exported program"]),
    "a.keras": (zipped("config.json", "model.weights.h5"), ["Keras", "tf2onnx"]),
    "a.npz": (zipped("x.npy"), ["NumPy", "--inputs"]),
    "packed.zip": (zipped("d/m.onnx"), ["zip archive that holds d/m.onnx", "unpack"]),
    "cut.zip": (zipped("d/m.onnx")[:40], ["zip archive that is cut off"]),
    "m.onnx.gz": (gzip.compress(INTACT), ["gzip", "unpack"]),
    "m.tar": (b"m.onnx".ljust(257, b"\0") + b"ustar" + bytes(250), ["tar archive", "unpack"]),
    "m.h5": (b"\x89HDF\r\n\x1a\n" + bytes(50), ["HDF5", "tf2onnx"]),
    "m.tflite": (b"\x1c\0\0\0TFL3" + bytes(50), ["TensorFlow Lite", "tf2onnx"]),
    "m.ort": (b"\x1c\0\0\0ORTM" + bytes(50), ["ORT format", "ONNX file that it was made from"]),
    "m.safetensors": (safetensors(b'{"__metadata__":{"format":"pt"}}'), ["safetensors"]),
    "m.gguf": (b"GGUF\3\0\0\0" + bytes(30), ["GGUF"]),
    "m.pkl": (pickle.dumps({"a": 1}), ["pickle"]),
    "m.engine": (b"ftrt\0\0\0\0" + bytes(30), ["TensorRT engine"]),
    "told.engine": ((9).to_bytes(4, "little") + b'{"a": 12}ftrt' + bytes(9), ["TensorRT engine"]),
    "m.mlmodel": (b"\x08\x04\x12\x02\x0a\0\xa2\x1f\x02\x0a\0", ["Core ML"]),
    "unnamed": (b"\x08\x04\x12\x02\x0a\0\xa2\x1f\x02\x0a\0", ["Core ML"]),
    "x.npy": (b"\x93NUMPY\1\0" + bytes(30), ["NumPy array"]),
    "input_0.pb": (numpy_helper.from_array(ZEROS, "x").SerializeToString(), ["a tensor in ONNX's"]),
    "frozen.pb": (b"\x0a\x10\x0a\x01x\x12\x0bPlaceholder", ["TensorFlow graph", "tf2onnx"]),
    "config.json": (json.dumps({"model_type": "bert"}).encode(), ["JSON", "no graph"]),
    "notes.onnx": ("Grüße\n".encode(), ["a text"]),
    "zeros.onnx": (bytes(5000), ["nothing but zeros", "download"]),
    "empty.onnx": (b"", ["is empty"]),
    "half.onnx": (INTACT[: len(INTACT) // 2], ["not an ONNX model, or is cut off"]),
    "odd.json": (b'{"graph": {"nodes": 1}}', ["cannot be read as JSON", "nodes"]),
    "odd.textproto": (b"ir_version: 8\ngraph { nodde { } }", ["protobuf's text form", "nodde"]),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_no_model(name, tmp_path):
    data, words = KINDS[name]
    (tmp_path / name).write_bytes(data)
    refused(bnfold(tmp_path / name), str(tmp_path / name), *words)


def test_the_weights_beside_a_model(tmp_path):
    """Without the model they are anything."""
    (tmp_path / "m.onnx.data").write_bytes(b"\x08" + bytes(range(256)))
    refused(bnfold(tmp_path / "m.onnx.data"), "or is cut off")
    (tmp_path / "m.onnx").write_bytes(INTACT)
    refused(bnfold(tmp_path / "m.onnx.data"), "the weights of m.onnx", str(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    "files, words",
    [
        ([], ["it is a folder", "--check"]),
        (["a.onnx"], ["a.onnx"]),
        (["a.onnx", "b.onnx"], ["it holds 2", "--check"]),
        (["saved_model.pb"], ["SavedModel", "tf2onnx"]),
    ],
    ids=str,
)
def test_a_folder_says_what_is_in_it(files, words, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(INTACT)
    refused(bnfold(folder), str(folder), *words)


def test_a_model_is_a_model_whatever_its_name(tmp_path):
    """The bytes decide: a good model may have any name."""
    for name in ("model", "m.pb", "m.engine", "m.ort", "config.json", "m.pt"):
        (tmp_path / name).write_bytes(INTACT)
        assert bnfold(tmp_path / name, "--no-verify").code == 0, name


# --- models as text -----------------------------------------------------------------------------

SUFFIXES = {"json": ".json", "textproto": ".textproto", "onnxtxt": ".onnxtxt"}


@pytest.fixture
def texts(model, tmp_path):
    """A model in each form of text, under names that do not tell it."""
    made = onnx.load(model)
    for form in SUFFIXES:
        onnx.save(made, tmp_path / f"{form}.txt", format=form)
    return tmp_path


@pytest.mark.parametrize("form", SUFFIXES)
def test_a_model_as_text_is_read(form, texts, model):
    if form == "onnxtxt" and not runtimes.texts_keep_digits():
        pytest.skip("this onnx writes fewer digits than a number has")
    target = texts / "out.onnx"
    run = bnfold(texts / f"{form}.txt", "-o", target)
    assert (run.code, run.err) == (0, "")
    assert "certificates: 1 of 1 hold" in run.lines
    assert bnfold("verify", model, target).code == 0
    assert bnfold("verify", texts / f"{form}.txt", target).code == 0


def test_bytes_ahead_of_a_text_do_no_harm(texts):
    for name, ahead in (("json", b"\xef\xbb\xbf"), ("textproto", b"# a comment\n\n")):
        path = texts / f"{name}.txt"
        path.write_bytes(ahead + path.read_bytes())
        assert bnfold(path, "--check").code == 1


@pytest.mark.parametrize("form", ["json", "textproto"])
def test_the_name_of_the_output_says_the_form(form, model, tmp_path):
    target = tmp_path / f"out{SUFFIXES[form]}"
    run = bnfold(model, "-o", target)
    assert run.code == 0
    assert run.lines[-1].startswith(f"wrote {target}, in ")
    assert bnfold(model, "-o", tmp_path / "out.onnx").code == 0
    assert onnx.load(target, format=form) == onnx.load(tmp_path / "out.onnx")
    before = target.read_bytes()
    run = bnfold(target, "--in-place")
    assert (run.code, target.read_bytes()) == (0, before)
    target.write_bytes(onnx.serialization.registry.get(form).serialize_proto(onnx.load(model)))
    assert bnfold(target, "--in-place").code == 0
    assert onnx.load(target, format=form) == onnx.load(tmp_path / "out.onnx")


def test_a_text_with_weights_beside_it(external, tmp_path):
    made = onnx.load(external, load_external_data=False)
    onnx.save(made, tmp_path / "m.json", format="json")
    run = bnfold(tmp_path / "m.json", "-o", tmp_path / "out.json")
    assert run.code == 0
    assert bnfold("verify", external, tmp_path / "out.json").code == 0
    (tmp_path / "two.bin").unlink()
    refused(bnfold(tmp_path / "m.json"), "two.bin", "there is no such file")


# --- outputs that would not be what they are called ----------------------------------------------


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".ort", ".npz", ".safetensors", ".onnxtxt"])
def test_an_output_with_the_name_of_another_kind(suffix, model, tmp_path):
    refused(bnfold(model, "-o", tmp_path / f"o{suffix}"), suffix, "name it .onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_a_program_is_not_written_as_a_model(tmp_path):
    (tmp_path / "m.pt2").write_bytes(zipped("m/archive_format"))
    run = bnfold(tmp_path / "m.pt2", "-o", tmp_path / "o.onnx")
    refused(run, "o.onnx", "name it .pt2")


def test_no_streams(model, tmp_path):
    for args in ((model, "-o", "-"), (model, "--report", "-"), ("-",), ("verify", "-", model)):
        refused(bnfold(*args, cwd=tmp_path), "-: ", "standard")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


# --- options that cannot apply, before any work ---------------------------------------------------


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A model that is read, and no more: whatever is planned or run is a fault of the test."""

    def never(*_: object) -> None:
        raise AssertionError("this is work")

    monkeypatch.setattr("bnfold._pipeline.models.prepare", never)
    monkeypatch.setattr("bnfold._judge.by_proof.proof_of", never)
    return examples.save(examples.foldable(), tmp_path / "m.onnx")


def test_options_that_cannot_apply_are_told_before_any_work(broken, tmp_path):
    np.savez(tmp_path / "in.npz", z=np.zeros((2, 3, 8, 8), np.float32))
    for args, words in (
        (("--dim", "foo=2"), ["no free dimension 'foo'"]),
        (("--inputs", tmp_path / "in.npz"), ["['x']", "['z']"]),
    ):
        refused(bnfold(broken, *args), *words)
        refused(bnfold("verify", broken, broken, *args), *words)


def test_a_provider_that_is_not_there_is_told_at_once(model):
    run = bnfold(model, "--provider", "cuda")
    assert run.code == 3
    assert run.err.startswith("note: the installed onnxruntime has no provider cuda")
    assert "onnxruntime-gpu" in run.err


# --- several models -------------------------------------------------------------------------------


def test_check_goes_on_after_a_file_that_cannot_be_read(model, settled, tmp_path):
    bad, none = tmp_path / "bad.onnx", tmp_path / "none.onnx"
    bad.write_bytes(b"PK\3\4")
    for given, code, unread in (
        ((bad, settled, none, model), 2, 2),
        ((model, bad), 2, 1),
        ((settled, model, settled), 1, 0),
        ((settled, settled), 0, 0),
    ):
        run = bnfold(*given, "--check")
        assert run.code == code
        assert len(run.err.splitlines()) == unread
        readable = [f"{path}:" for path in given if path not in (bad, none)]
        assert [line for line in run.lines if line.endswith("onnx:")] == readable
        assert run.lines[-1].startswith(f"checked {len(given)} models")


def test_check_takes_folders(model, settled, tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "readme.txt").write_text("no model")
    settled.rename(folder / "deep" / "s.onnx")
    assert bnfold(folder, "--check").lines[-1] == "checked 1 model"
    (folder / ".hidden" / "bad.onnx").write_bytes(b"bad")
    assert bnfold(folder, "--check").code == 0
    model.rename(folder / "m.onnx")
    run = bnfold(folder, "--check")
    assert (run.code, run.lines[-1]) == (1, "checked 2 models, 1 with something left to fold")
    (folder / "bad.onnx").write_bytes(b"bad")
    run = bnfold(folder, "--check", "--output-format", "github")
    assert run.code == 2
    assert f"::error file={folder / 'bad.onnx'}," in run.out
    told = json.loads(bnfold(folder, "--check", "--output-format", "json").out)
    assert [one["status"] for one in told["models"]] == [
        "unreadable",
        "nothing to fold",
        "left to fold",
    ]
    (tmp_path / "empty").mkdir()
    refused(bnfold(tmp_path / "empty", "--check"), "empty", "no .onnx file")
    assert bnfold(tmp_path / "empty", folder / "deep", "--check").code == 2


def test_the_package_is_a_command(model, tmp_path):
    import sys

    command = (sys.executable, "-m", "bnfold")
    run = process(model, "--check", command=command)
    assert run.code == 1
    assert process("--help", command=command).out.startswith("Usage: bnfold ")
