"""Weights beside the model file stay beside it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, numpy_helper

import bnfold
from bnfold._judge import by_proof
from bnfold._onnx import fold, tensors
from bnfold._pipeline.models import fold_file

from .functions import two_calls
from .golden.models import models as golden
from .graphs import assert_same, bn, check, constants, conv, counts, model, op, rand, run


def two_blocks():
    return model(
        conv("conv1", "x", "c1", (8, 3, 3, 3)),
        bn("bn1", "c1", "b1", 8),
        op("Relu", "b1", "r"),
        conv("conv2", "r", "c2", (8, 8, 3, 3)),
        op("Relu", "c2", "y"),
    )


def saved(m, folder: Path, location: str = "weights.bin", size: int = 256) -> Path:
    """Write ``m`` with every tensor of at least ``size`` bytes in ``location``."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = onnx.ModelProto()
    copy.CopyFrom(m)
    path = folder / "model.onnx"
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        copy,
        path,
        save_as_external_data=True,
        location=location,
        size_threshold=size,
        convert_attribute=False,
    )
    return path


def external(path: Path) -> dict[str, dict[str, str]]:
    raw = onnx.load(path, load_external_data=False)
    return {
        t.name: {e.key: e.value for e in t.external_data}
        for t in raw.graph.initializer
        if t.data_location == onnx.TensorProto.EXTERNAL
    }


def test_folded_weights_of_an_external_model_stay_external(tmp_path):
    m = two_blocks()
    source = saved(m, tmp_path / "in")
    before = (source.parent / "weights.bin").read_bytes()
    target = tmp_path / "out" / "folded.onnx"
    target.parent.mkdir()
    bnfold.fold(source, target)
    assert (source.parent / "weights.bin").read_bytes() == before, "the original's data changed"
    assert counts(onnx.load(target)) == {"Conv": 2, "Relu": 2}
    big = {t.name for t in onnx.load(target).graph.initializer if len(t.raw_data) >= 256}
    assert set(external(target)) >= {n for n in big if n in external(source)}
    assert_same(m, onnx.load(target))
    data = {"x": rand(2, 3, 8, 8)}
    np.testing.assert_allclose(run(str(target), data)[0], run(str(source), data)[0], rtol=1e-3)


def test_weights_that_calls_of_a_function_give_are_written_where_they_lay(tmp_path):
    """The calls are inlined in a copy of the model; what is written is the model itself."""
    m = two_calls(3, 4, 5)
    source = saved(m, tmp_path)
    target = tmp_path / "folded.onnx"
    bnfold.fold(source, target)
    assert counts(onnx.load(target)) == {"Conv": 2}
    places = [{n: where["offset"] for n, where in external(p).items()} for p in (source, target)]
    assert places[0] == places[1] and places[1].keys() == {"a.w", "b.w"}
    assert_same(m, onnx.load(target))


def test_a_weight_behind_another_is_written_where_it_lay(tmp_path):
    m = model(
        conv("conv1", "x", "c1", (8, 3, 3, 3)),
        op("Relu", "c1", "r"),
        conv("conv2", "r", "c2", (8, 8, 3, 3)),
        bn("bn2", "c2", "y", 8),
    )
    source = saved(m, tmp_path / "in")
    assert int(external(source)["conv2.w"]["offset"]) > 0
    target = tmp_path / "out" / "folded.onnx"
    target.parent.mkdir()
    bnfold.fold(source, target)
    assert external(target).keys() == {"conv1.w", "conv2.w"}
    assert_same(m, onnx.load(target))


def test_the_folded_model_does_not_need_the_original(tmp_path):
    source = saved(two_blocks(), tmp_path / "in")
    target = tmp_path / "out" / "folded.onnx"
    target.parent.mkdir()
    bnfold.fold(source, target)
    want = run(str(target), {"x": rand(2, 3, 8, 8) * 0})
    for f in (tmp_path / "in").iterdir():
        f.unlink()
    (got,) = run(str(target), {"x": rand(2, 3, 8, 8) * 0})
    np.testing.assert_array_equal(got, want[0])


def test_beside_the_original_the_data_of_the_original_is_not_touched(tmp_path):
    m = two_blocks()
    source = saved(m, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    bnfold.fold(source, tmp_path / "folded.onnx")
    for name, data in before.items():
        assert (tmp_path / name).read_bytes() == data
    assert_same(m, onnx.load(tmp_path / "folded.onnx"))
    assert_same(m, onnx.load(source))


def test_written_twice_the_data_does_not_grow(tmp_path):
    source = saved(two_blocks(), tmp_path / "in")
    target = tmp_path / "out" / "folded.onnx"
    target.parent.mkdir()
    bnfold.fold(source, target)
    (first,) = [p.stat().st_size for p in target.parent.iterdir() if p != target]
    bnfold.fold(source, target)  # to a new name: the old model has its data until it is replaced
    (again,) = [p.stat().st_size for p in target.parent.iterdir() if p != target]
    assert again == first


def test_a_draft_that_vanishes_takes_no_data_along(tmp_path, monkeypatch):
    """The old model stays then, and needs its data."""
    source = saved(two_blocks(), tmp_path / "in")
    target = tmp_path / "out" / "folded.onnx"
    target.parent.mkdir()
    bnfold.fold(source, target)
    before = {path: path.read_bytes() for path in target.parent.iterdir()}

    def vanished(draft, place):
        os.unlink(draft)
        raise FileNotFoundError(2, "no such file", str(draft))

    monkeypatch.setattr(os, "replace", vanished)
    with pytest.raises(bnfold.UsageError, match="no such file"):
        bnfold.fold(source, target)
    assert {path: path.read_bytes() for path in target.parent.iterdir()} == before


@pytest.mark.parametrize("how", ["replaced", "written to", "removed"])
def test_data_that_change_while_they_are_read(how, tmp_path, monkeypatch):
    """Between planning and copying: half of the output would be another model's."""
    source = saved(two_blocks(), tmp_path / "in")
    data = source.with_name("weights.bin")
    right = fold.PlannedModel.apply

    def changed(planned, *args):
        done = right(planned, *args)
        new = data.read_bytes()[::-1]
        if how == "written to":
            data.write_bytes(new)
        else:
            data.rename(tmp_path / "elsewhere")
            if how == "replaced":
                data.write_bytes(new)
        return done

    monkeypatch.setattr(fold.PlannedModel, "apply", changed)
    with pytest.raises(bnfold.UsageError, match=r"weights\.bin.*(changed while|no such file)"):
        bnfold.fold(source, tmp_path / "in" / "folded.onnx")
    assert not (tmp_path / "in" / "folded.onnx").exists()
    left = {path.name for path in (tmp_path / "in").iterdir()}
    assert left <= {"model.onnx", "weights.bin"}


@pytest.mark.parametrize("shared", ["a weight that stays", "another that folds", "a part"])
@pytest.mark.parametrize("told", [True, False])
def test_bytes_that_several_tensors_have_are_not_overwritten(shared, told, tmp_path):
    """Tools write weights that are equal once. What folds into one of them changes no other."""
    made = model(
        conv("conv1", "x", "c1", (8, 8, 3, 3)),
        bn("bn1", "c1", "b1", 8),
        op("Relu", "b1", "r"),
        conv("conv2", "r", "c2", (8, 8, 3, 3)),
        bn("bn2", "c2", "b2", 8) if shared == "another that folds" else op("Relu", "c2", "b2"),
        op("Add", "b2 small", "y"),
        x=(1, 8, 8, 8),
        weights={"small": rand(3, 1, 1, 1)},
    )
    source = saved(made, tmp_path / "in", size=4)
    raw = onnx.load(source, load_external_data=False)
    other = "small" if shared == "a part" else "conv2.w"
    places = {t.name: {e.key: e for e in t.external_data} for t in raw.graph.initializer}
    first = int(places["conv1.w"]["offset"].value) + (16 if shared == "a part" else 0)
    places[other]["offset"].value = str(first)
    if not told:  # The length is that of the numbers then.
        for tensor in raw.graph.initializer:
            del tensor.external_data[:]
            for key in ("location", "offset"):
                tensor.external_data.add(key=key, value=places[tensor.name][key].value)
    source.write_bytes(raw.SerializeToString())
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    skipped = 16 if shared == "a part" else 0
    alike = stored["conv1.w"].raw_data[skipped:][: len(stored[other].raw_data)]
    stored[other].raw_data = alike
    target = tmp_path / "out" / "folded.onnx"
    target.parent.mkdir()
    for write in (bnfold.fold, folded_by_command):
        write(source, target)
        folded = onnx.load(target, load_external_data=False)
        for tensor in folded.graph.initializer:
            values = tensors.read(tensor, target.parent)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        assert counts(folded).get("BatchNormalization", 0) == 0
        assert_same(made, folded)


def folded_by_command(source: Path, target: Path) -> None:
    fold_file(source, target, verify=False, inputs=None, progress=lambda _: None)


GIVEN = dict(golden())


@pytest.mark.parametrize(
    "name", [n for n in GIVEN if n.startswith(("own/", "command/", "folds/", "stored/"))][::6]
)
def test_a_fold_is_that_of_the_model_with_its_weights_inside(name, tmp_path):
    """They are made one by one, while the data file is written."""
    inside = tmp_path / "inside.onnx"
    inside.write_bytes(GIVEN[name]().model.SerializeToString())
    outside = saved(onnx.load(inside), tmp_path / "out", size=100)  # Sizes stay inside.
    found = []
    for path in (inside, outside):
        target = path.with_name("folded.onnx")
        folded_by_command(path, target)
        folded = onnx.load(target)
        for tensor in tensors.all_tensors(folded):
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        found.append(folded)
    assert found[0] == found[1]


def test_new_weights_are_not_in_memory_before_they_are_written(tmp_path):
    """All of them at once took 1.4 times the memory of the model. Biases are not worth the care."""
    source = saved(two_blocks(), tmp_path)
    made = onnx.load(source, load_external_data=False)
    rewritten = fold.prepare(made, tmp_path).apply(later=True)
    assert len(rewritten.made) == 1
    assert [tensor.name for tensor, _ in rewritten.relocated] == ["conv1.w"]
    assert max(len(tensor.raw_data) for tensor in made.graph.initializer) < 256


def test_data_in_a_folder_below(tmp_path):
    m = two_blocks()
    source = saved(m, tmp_path / "in", location="data/w.bin")
    target = tmp_path / "out" / "folded.onnx"
    target.parent.mkdir()
    bnfold.fold(source, target)
    assert_same(m, onnx.load(target))


def test_path_without_output_gives_a_model_that_runs(tmp_path):
    m = two_blocks()
    source = saved(m, tmp_path)
    after = bnfold.fold(source)
    external_data_helper.load_external_data_for_model(after, str(tmp_path))
    assert_same(m, after)


def test_base_dir_for_a_proto(tmp_path):
    m = two_blocks()
    source = saved(m, tmp_path)
    raw = onnx.load(source, load_external_data=False)
    plan = bnfold.plan(raw, base_dir=tmp_path)
    assert plan.folds[0].nodes == ("bn1",)
    after = bnfold.fold(raw, base_dir=tmp_path)
    external_data_helper.load_external_data_for_model(after, str(tmp_path))
    assert_same(m, after)


def test_bystanders_are_not_rewritten(tmp_path):
    """In memory, a tensor that no fold concerns keeps its place and offset."""
    source = saved(two_blocks(), tmp_path)
    raw = onnx.load(source, load_external_data=False)
    after = bnfold.fold(raw, base_dir=tmp_path)
    before = {t.name: t.SerializeToString() for t in raw.graph.initializer}
    now = {t.name: t.SerializeToString() for t in after.graph.initializer}
    assert now["conv2.w"] == before["conv2.w"]
    assert now["conv2.b"] == before["conv2.b"]


def test_missing_data_of_a_bystander_does_not_matter_to_the_plan(tmp_path):
    """Weights are read only when a fold needs them."""
    m = two_blocks()
    saved(m, tmp_path)
    raw = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for t in raw.graph.initializer:
        if t.name == "conv2.w":
            next(e for e in t.external_data if e.key == "location").value = "gone.bin"
    after = bnfold.fold(raw, base_dir=tmp_path)
    assert counts(after) == {"Conv": 2, "Relu": 2}


def test_missing_data_is_an_error_that_names_the_file(tmp_path):
    source = saved(two_blocks(), tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(Exception, match=r"weights\.bin"):
        bnfold.fold(source, tmp_path / "folded.onnx")
    assert not (tmp_path / "folded.onnx").exists()


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
def test_symbolic_links_as_model_hubs_make_them(tmp_path):
    m = two_blocks()
    source = saved(m, tmp_path / "blobs")
    hub = tmp_path / "snapshot"
    hub.mkdir()
    for name in ("model.onnx", "weights.bin"):
        (hub / name).symlink_to(source.parent / name)
    target = tmp_path / "out" / "folded.onnx"
    target.parent.mkdir()
    bnfold.fold(hub / "model.onnx", target)
    assert_same(m, onnx.load(target))


@pytest.mark.parametrize("location", ["../secret.bin", "secret.bin/", "secret.bin/."])
def test_data_elsewhere_is_refused(location, tmp_path):
    """Outside the folder; or below a file, which `pathlib` would take for the file itself."""
    source = saved(two_blocks(), tmp_path / "in")
    place = tmp_path / "in" / location if location[0] != "." else tmp_path / "secret.bin"
    (tmp_path / "in" / "weights.bin").rename(place)
    raw = onnx.load(source, load_external_data=False)
    for t in raw.graph.initializer:
        for e in t.external_data:
            if e.key == "location":
                e.value = location
    source.write_bytes(raw.SerializeToString())
    with pytest.raises(bnfold.UsageError, match=r"secret\.bin"):
        bnfold.fold(source, tmp_path / "folded.onnx")


def test_nothing_to_fold_keeps_the_model_bytes(tmp_path):
    m = model(conv("conv", "x", "c", (8, 3, 3, 3)), op("Relu", "c", "y"))
    source = saved(m, tmp_path / "in")
    target = tmp_path / "in" / "copy.onnx"
    bnfold.fold(source, target)
    assert_same(m, onnx.load(target))


def test_in_memory_model_folds_as_the_file_does(tmp_path):
    m = two_blocks()
    loaded = onnx.load(saved(m, tmp_path))
    after = bnfold.fold(loaded)
    check(loaded, after)
    mine, theirs = constants(after), constants(bnfold.fold(m))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        np.testing.assert_array_equal(value, theirs[name])
    assert numpy_helper.to_array(after.graph.initializer[0]).dtype == np.float32


def test_numbers_that_a_graph_reads_may_lie_outside(tmp_path):
    """Integer scalars: an index, and what a condition is compared with."""
    m = model(
        conv("conv", "x", "c", (8, 3, 3, 3)),
        bn("bn", "c", "b", 8),
        (op("Gather", "b one", "g", axis=1), {"one": np.int64(1)}),
        (op("Equal", "k two", "e"), {"two": np.int64(2)}),
        op("Where", "e g g", "y"),
        x={"x": (1, 3, 8, 8), "k": ()},
    )
    m.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    for stored in m.graph.initializer:
        if stored.data_type == onnx.TensorProto.INT64:
            values = numpy_helper.to_array(stored)
            stored.CopyFrom(numpy_helper.from_array(values, stored.name))
    source = saved(m, tmp_path / "in", size=0)
    assert {"one", "two"} <= set(external(source))
    target = tmp_path / "out" / "model.onnx"
    target.parent.mkdir()
    bnfold.fold(source, target)
    after = onnx.load(target)
    assert counts(after) == {"Conv": 1, "Gather": 1, "Equal": 1, "Where": 1}
    for k in (1, 2):
        given = {"x": rand(1, 3, 8, 8), "k": np.array(k)}
        np.testing.assert_allclose(run(m, given)[0], run(after, given)[0], rtol=1e-4, atol=1e-4)
    assert bnfold.verify(source, target).status == "pass"


@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
def test_packed_integers_outside_are_read(kind, tmp_path):
    values = np.arange(15) % 8
    stored = onnx.helper.make_tensor("q", getattr(onnx.TensorProto, kind), [15], values)
    packed = stored.raw_data or bytes(
        int(a) | int(b) << 4 for a, b in zip(values[::2], [*values[1::2], 0])
    )
    (tmp_path / "w.bin").write_bytes(b"..." + packed)
    told = onnx.TensorProto(name="q", data_type=stored.data_type, dims=[15])
    told.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "3"), ("length", str(len(packed)))):
        told.external_data.add(key=key, value=value)
    np.testing.assert_array_equal(tensors.read(told, tmp_path).astype(int), values)


SHRINKING = """
import os, sys
import bnfold
from bnfold._onnx import tensors

path, what = sys.argv[1:]
right = tensors.{name}
def read(tensor, base_dir):
    values = right(tensor, base_dir)
    if values.nbytes > 1 << 20:
        os.truncate(path.replace("model.onnx", "weights.bin"), 100)
    return values
tensors.{name} = read
try:
    print(getattr(bnfold, what)(path) and "done")
except bnfold.UsageError as error:
    print(error)
"""


def shrinking(path: Path, what: str, name: str = "read") -> tuple[int, str]:
    command = [sys.executable, "-c", SHRINKING.format(name=name), str(path), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(os.name != "posix", reason="a file that is open cannot be changed here")
@pytest.mark.parametrize("what", ["plan", "fold"])
def test_data_that_shrink_do_not_end_the_process(what, tmp_path):
    """After a large weight was read: were it mapped, looking at it would end the process."""
    pieces, source = [], "x"
    for k in range(3):  # two convolutions merge, so that planning reads their weights
        pieces += [
            conv(f"conv{k}", source, f"c{k}", (640, 640, 1, 1)),
            bn(f"bn{k}", f"c{k}", f"b{k}", 640),
        ]
        source = f"b{k}"
    made = model(*pieces, x=(1, 640, 2, 2), y=source)
    path = saved(made, tmp_path)
    code, told = shrinking(path, what)
    assert code == 0, f"ended with {code}"
    assert told.startswith(f"{path}: external data {path.with_name('weights.bin')} ends before")
    assert told.count("\n") == 1


CUT_OFF = """
import os, sys
import bnfold
import bnfold._judge.end_to_end
from bnfold._run import session

right = session.OnnxRuntime.run
for case in sys.argv[1:]:
    first, second, cut = case.split("|")
    runs = []
    def run(self, feeds):
        runs.append(1)
        if len(runs) == 2:
            os.truncate(cut, 100)
        return right(self, feeds)
    session.OnnxRuntime.run = run
    child = os.fork()
    if not child:
        try:
            page = second.endswith(".html")
            print(bnfold.report(first, second) if page else bnfold.verify(first, second).status)
        except bnfold.UsageError as error:
            print(error)
        sys.stdout.flush()
        os._exit(0)
    print("ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only what can be forked is ended apart")
def test_files_that_shrink_while_they_are_compared_do_not_end_the_process(tmp_path):
    """onnxruntime maps data files, and weights stay mapped: here neither has the user's files."""
    made = model(
        conv("conv", "x", "c", (640, 640, 1, 1)), bn("bn", "c", "y", 640), x=(1, 640, 2, 2)
    )
    cases, expected = [], []
    cuts = ["a/weights.bin", "b/weights.bin", "a/model.onnx"]
    for cut in cuts + ["page"] * bool(find_spec("fast_sugiyama")):
        home = tmp_path / f"{len(cases)}"
        for name in "ab":
            (home / name).mkdir(parents=True)
            saved(made, home / name)
        if cut == "a/model.onnx":
            onnx.save(made, home / cut)
        second = home / ("page.html" if cut == "page" else "b/model.onnx")
        gone = home / ("a/weights.bin" if cut == "page" else cut)
        cases.append(f"{home / 'a/model.onnx'}|{second}|{gone}")
        changed = f"{gone} was changed while it was read; run it again"
        expected += [str(second) if cut == "page" else changed, "ended with 0"]
    asked = [sys.executable, "-c", CUT_OFF, *cases]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == expected, done.stderr
    assert not list(tmp_path.rglob(".bnfold-*"))


def test_weights_that_change_behind_the_proof_get_no_verdict(tmp_path, monkeypatch):
    """No output shows so small an error, and the proof is about what was there before."""
    made = two_blocks()
    one, other = saved(made, tmp_path / "a"), saved(made, tmp_path / "b")
    data = other.parent / "weights.bin"
    proof_of = by_proof.proof_of

    def proved(*given):
        proof = proof_of(*given)
        held = np.fromfile(data, np.float32)
        held[-8] *= 1 + 1e-6
        held.tofile(data)
        return proof

    assert bnfold.verify(one, other).status == "pass"
    monkeypatch.setattr(by_proof, "proof_of", proved)
    with pytest.raises(bnfold.UsageError, match="was changed while it was read"):
        bnfold.verify(one, other)


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_arrays_whose_pages_are_dropped_hold_what_they_held(mode: str, tmp_path: Path) -> None:
    """What is written into a copy of pages, or into no file at all, would be gone with them."""
    np.arange(10_000, dtype=np.float32).tofile(tmp_path / "w")
    array = np.memmap(tmp_path / "w", np.float32, mode, 400, (99, 97))
    shared = np.frombuffer(mmap.mmap(-1, 4096), np.float32)
    if mode != "r":
        array[3] = 7
    shared[:] = 7
    before = np.array(array)
    tensors.let_go([np.asarray(array), np.asarray(array).T[1:], shared, np.ones(3)])
    assert np.array_equal(array, before)
    assert (shared == 7).all()
