"""What a file cannot do: crash without a word, hang, take all memory, or be called a defect."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold as library
from bnfold._command import guard

from .. import graphs
from . import examples
from .command import bnfold, process, refused, tree

GUARDED = """
import os, signal, sys
from pathlib import Path
import bnfold._pipeline.models as models
def end(*args, **kwargs):
    from bnfold._system import scratch
    with scratch.beside(Path(sys.argv[-1]).parent):
        {ending}
models.prepare = end
from bnfold._command.guard import main
main()
"""


def ending(how: str) -> tuple[str, ...]:
    """The command, which ends in this way in the middle of its work."""
    return (sys.executable, "-c", GUARDED.format(ending=how))


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("os.abort()", 2, "a library crashed on this file (SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 2, "a library crashed on this file (SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGBUS)", 2, "a file became shorter while it was read"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 3, "memory may have run out"),
        ("os._exit(1)", 3, "a library ended the process"),
        ("os._exit(0)", 3, "a library ended the process"),
    ],
)
def test_a_process_that_a_library_ends(how, code, words, model, tmp_path):
    """It is told in one line, it never looks like a verdict, and nothing is left behind."""
    before = tree(tmp_path)
    run = process(model, command=ending(how))
    assert (run.code, run.out) == (code, "")
    assert run.err.startswith("error: ") and words in run.err
    assert run.err.count("\n") == 1
    assert tree(tmp_path) == before


def test_a_crash_behind_the_end(capfd):
    """What the run has written is whole: the file is not blamed."""
    assert guard._ending(signal.SIGABRT, 0, guard._DONE) == 3
    assert "a library crashed when the run was over" in capfd.readouterr().err
    assert guard._ending(signal.SIGKILL, 0, guard._DONE) == 3
    assert "the system killed the process when the run was over" in capfd.readouterr().err


def test_no_folder_for_temporary_files(monkeypatch):
    """The command runs as it is then."""

    def nowhere():
        raise FileNotFoundError(2, "no usable temporary directory")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    seen = []
    monkeypatch.setattr(guard, "_command", seen.append)
    before = signal.getsignal(signal.SIGINT)
    guard.main()
    assert seen == [{}]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_process_that_raises(model):
    """What Python can catch is no crash."""
    run = process(model, command=ending("raise ValueError('no')"))
    assert run.code == 2
    assert "bnfold broke down (ValueError: no)" in run.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_work_begins(number, model):
    how = f"os.kill(os.getppid(), {int(number)}); __import__('time').sleep(20)"
    run = process(model, command=ending(how), before=lambda: signal.signal(number, signal.SIG_DFL))
    assert (run.code, run.err.strip()) == (128 + number, "interrupted")


def test_a_crash_of_what_an_interrupt_breaks_off(model):
    """NumPy crashed when its import was interrupted. Nobody is told then that the file is bad."""
    how = (
        "signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGSEGV)); "
        "os.kill(os.getppid(), signal.SIGINT); __import__('time').sleep(20)"
    )
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    run = process(model, command=ending(how), before=heed)
    assert (run.code, run.out, run.err) == (130, "", "interrupted\n")


def test_so_little_memory_that_nothing_can_be_imported(model):
    """Not even what tells an error. A traceback and exit code 1 said that a fold was wrong."""
    script = (
        "import sys\nclass Nothing:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'numpy': raise ImportError('failed to map segment')\n"
        "sys.meta_path.insert(0, Nothing())\n"
        "from bnfold._command.guard import main\nmain()\n"
    )
    run = process(model, command=(sys.executable, "-c", script))
    assert (run.code, run.out) == (3, "")
    assert run.err == "error: a library ended the process; memory may have run out\n"


def test_more_reports_than_a_pipe_holds(tmp_path):
    """A run over many models makes a temporary folder for each: the command waited for ever.

    Here it reports as much of some files, which costs no time.
    """
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from bnfold._system import scratch\nimport bnfold._command.cli as cli\n"
        "def many(**extra):\n"
        "    scratch.placing(Path('none'), [Path('x' * 1000)] * 300)\n"
        "    sys.exit(0)\n"
        "cli.main = many\nfrom bnfold._command.guard import main\nmain()\n"
    )
    assert process(command=(sys.executable, "-c", script), env={"TMPDIR": str(tmp_path)}).code == 0


def damaged(kind: str) -> onnx.ModelProto:
    made = onnx.load_model_from_string(examples.foldable().SerializeToString())
    tensor = made.graph.initializer[0]
    if kind == "too many bytes":
        tensor.raw_data += b"12345"
    elif kind == "too few numbers":
        values = numpy_helper.to_array(tensor).ravel()
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values[:-1].tolist())
    elif kind == "negative size":
        tensor.dims[0] *= -1
    elif kind == "unknown type":
        tensor.data_type = 999
    elif kind == "unknown type of an input":
        made.graph.input[0].type.tensor_type.elem_type = 999
    elif kind == "unknown type in a body":
        value = helper.make_tensor_value_info("q", TensorProto.FLOAT, [1])
        value.type.tensor_type.elem_type = 999
        body = helper.make_graph([helper.make_node("Identity", ["y0"], ["q"])], "b", [], [value])
        made.graph.initializer.append(helper.make_tensor("cond", TensorProto.BOOL, [], [True]))
        source = made.graph.node[0].output[0]
        body.node[0].input[0] = source
        made.graph.node.append(
            helper.make_node("If", ["cond"], ["z"], then_branch=body, else_branch=body)
        )
    elif kind == "bytes in a Constant":
        short = numpy_helper.from_array(np.ones(3, np.float32), "")
        short.raw_data = short.raw_data[:-1]
        made.graph.node.append(helper.make_node("Constant", [], ["k"], value=short))
    return made


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("too many bytes", "its shape"),
        ("too few numbers", "numbers, its shape"),
        ("negative size", "has the shape [-"),
        ("unknown type", "element type 999"),
        ("unknown type of an input", "element type 999"),
        ("unknown type in a body", "element type 999"),
        ("bytes in a Constant", "holds 11 bytes"),
    ],
)
def test_a_tensor_that_cannot_be(kind, words, tmp_path):
    """onnxruntime does not load such a model. It is no defect of bnfold, in Python neither."""
    made = damaged(kind)
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    refused(bnfold(path, "-o", tmp_path / "o.onnx"), str(path), words)
    with pytest.raises(library.UsageError) as error:
        library.plan(made)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"), [("location", "a\0b"), ("length", "9" * 5000), ("offset", "9" * 30)]
)
def test_a_place_that_cannot_be(key, value, external, tmp_path):
    made = onnx.load(external, load_external_data=False)
    tensor = next(t for t in made.graph.initializer if t.external_data)
    entries = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
    del tensor.external_data[:]
    for one in entries.items():
        tensor.external_data.add(key=one[0], value=one[1])
    external.write_bytes(made.SerializeToString())
    run = bnfold(external, "--check")
    refused(run, tensor.name)
    assert len(run.err) < 300


def test_an_output_whose_name_is_no_text(external, tmp_path):
    """The name of its data file stands in the model, where only text can stand."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "one.bin").write_bytes(b"taken")
    target = os.fsdecode(os.path.join(os.fsencode(folder), b"o\xff.onnx"))
    assert process(external, "-o", target, "--no-verify").code == 0
    assert sorted(os.listdir(folder))[0] == "model.onnx.data"


def bomb(kind: str) -> onnx.ModelProto:
    """A file of some hundred bytes that asks for gigabytes."""
    made, side, size = helper.make_node, 8, 200_000_000
    nodes = [made("ConstantOfShape", ["s"], ["k"]), made("Mul", ["c", "k"], ["q"])]
    if kind == "a row of numbers":
        side, size = 4000, -1
        nodes = [
            made("Reshape", ["c", "s"], ["r0"]),
            *(made("Add", [f"r{k}"] * 2, [f"r{k + 1}"]) for k in range(3)),
            made("Identity", ["r3"], ["q"]),
        ]
    stored = {"w": np.ones((4, 3, 1, 1), np.float32), "s": np.array([size], np.int64)}
    graph = helper.make_graph(
        [made("Conv", ["x", "w"], ["c"]), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_no_memory_holds_is_told_once(tmp_path):
    """onnxruntime printed lines of its own, in colours, ahead of the error that it raised."""
    made = examples.foldable()
    made.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["huge"]))
    made.graph.output.append(helper.make_tensor_value_info("huge", TensorProto.FLOAT, None))
    made.graph.initializer.append(numpy_helper.from_array(np.array([1 << 62]), "size"))
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    run = process(path, "-o", tmp_path / "o.onnx", "--no-prove")
    assert (run.code, run.err) == (3, "")
    run = process("verify", path, tmp_path / "o.onnx", "--no-prove")
    assert (run.code, run.err) == (3, "")


MEASURED = """
import sys
from pathlib import Path
from bnfold._command.cli import main
try:
    main()
finally:
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line for line in lines if line.startswith("VmHWM")), file=sys.stderr)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell")
@pytest.mark.parametrize("kind", ["a constant", "a row of numbers"])
def test_a_small_file_takes_little_memory(kind, tmp_path):
    """ONNX's own inference took five gigabytes for the row.

    What it took at most is measured: a limit alone would say nothing, since bnfold does without
    what memory does not suffice for. The limit only keeps the machine from harm.
    """
    path = tmp_path / "m.onnx"
    path.write_bytes(bomb(kind).SerializeToString())

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (3_000_000_000, resource.RLIM_INFINITY))

    run = process(path, "--check", command=(sys.executable, "-c", MEASURED), before=limited)
    assert run.code == 0, run.err
    told = next(line for line in run.err.splitlines() if line.startswith("VmHWM"))
    assert int(told.split()[1]) < 600_000, told


SLICED = """
import sys, numpy as np, onnx, bnfold
from onnx import TensorProto, helper as h, numpy_helper as nh

def numbers(name, *values):
    return nh.from_array(np.array(values, np.int64), name)

stored = [numbers("zero", 0), numbers("five", 5), numbers("axis", 2)]
stored += [nh.from_array(np.ones((3, 3, 20, 20), np.float32), "w")]
slice_ = ["zero", "five", "axis"]
kinds = {
    "pool": ("MaxPool", [], {"kernel_shape": [20, 20]}, []),
    "conv": ("Conv", ["w"], {}, []),
    "pad": ("Pad", ["p"], {}, [numbers("p", 0, 0, -100, 0, 0, 0, 0, 0)]),
    "expand": ("Expand", ["p"], {}, [numbers("p", 1, 3, -8, 1)]),
}
for kind, more, attributes, own in kinds.values():
    for depth in range(3):
        nodes = [h.make_node("Slice", ["x", *slice_], ["y0"])]
        for k in range(depth):
            nodes.append(h.make_node("Slice", [f"y{k}", *slice_], [f"y{k + 1}"]))
        nodes.append(h.make_node(kind, [f"y{depth}", *more], ["z"], **attributes))
        nodes.append(h.make_node("Slice", ["z", *slice_], ["y"]))
        value = lambda n, s: h.make_tensor_value_info(n, TensorProto.FLOAT, s)
        ends = [value("x", [1, 3, 8, 1])], [value("y", None)]
        graph = h.make_graph(nodes, "g", *ends, stored + own)
        made = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=8)
        try:
            bnfold.plan(made)
        except bnfold.UsageError:
            pass
        print(kind, depth)
"""


def test_a_slice_of_a_negative_size_does_not_end_the_process():
    """ONNX's inference ends it: in a library call that is the process of its user."""
    done = subprocess.run(
        [sys.executable, "-c", SLICED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 12


SLICED_FURTHER = """
import sys, numpy as np, onnx, bnfold
from onnx import TensorProto, helper as h, numpy_helper as nh

def numbers(name, *values):
    return nh.from_array(np.array(values, np.int64), name)

def value(name, shape):
    return h.make_tensor_value_info(name, TensorProto.FLOAT, shape)

def cut(source, made):
    return h.make_node("Slice", [source, "zero", "five", "axis"], [made])

def pool(source, made):
    return h.make_node("MaxPool", [source], [made], kernel_shape=[20, 20])

def call(kind, source, made):
    return h.make_node(kind, [source, "zero", "five", "axis"], [made], domain="my")

def function(name, *nodes):
    here = [h.make_opsetid("", 18), h.make_opsetid("my", 1)]
    return h.make_function("my", name, ["a", "zero", "five", "axis"], ["b"], nodes, here)

long, name = [], "z"
for k in range(400):
    long.append(h.make_node("Relu", [name], [f"r{k}"]))
    name = f"r{k}"
body = h.make_graph(
    [cut("i", "o")], "body", [value("i", None)], [value("o", None)],
    [numbers("zero", 0), numbers("five", 5), numbers("axis", 1)],
)
cutting = function("F", cut("a", "b"))
kinds = {
    "many nodes": ([cut("x", "y0"), pool("y0", "y1"), cut("y1", "z"), *long], []),
    "a call": ([cut("x", "y0"), pool("y0", "y1"), call("F", "y1", "z")], [cutting]),
    "two calls": ([call("F", "x", "y0"), pool("y0", "y1"), call("F", "y1", "z")], [cutting]),
    "within a function": (
        [call("F", "x", "z")],
        [function("F", cut("a", "c"), pool("c", "d"), cut("d", "b"))],
    ),
    "a pool alone in it": ([call("F", "x", "z")], [function("F", pool("a", "c"), cut("c", "b"))]),
    "a call in a function": (
        [cut("x", "y0"), pool("y0", "y1"), call("G", "y1", "z")],
        [function("G", call("F", "a", "b")), cutting],
    ),
    "a pool in a function": (
        [cut("x", "y0"), call("P", "y0", "y1"), cut("y1", "z")], [function("P", pool("a", "b"))]
    ),
    "the body of a Scan": (
        [cut("x", "y0"), pool("y0", "y1"),
         h.make_node("Scan", ["y1"], ["z"], body=body, num_scan_inputs=1)], [],
    ),
}
for kind, (nodes, functions) in kinds.items():
    ends = [value("x", [1, 3, 8, 8])], [value(nodes[-1].output[0], None)]
    stored = [numbers("zero", 0), numbers("five", 5), numbers("axis", 2)]
    graph = h.make_graph(nodes, "g", *ends, stored)
    imports = [h.make_opsetid("", 18), h.make_opsetid("my", 1)]
    made = h.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    print(kind, flush=True)
    try:
        bnfold.plan(made)
    except bnfold.UsageError:
        pass
    if not functions:
        from bnfold._onnx.read import inference
        assert inference.is_safe(made) is False
        inference._WORK = 300
        assert inference.is_safe(made) is (None if kind == "many nodes" else False)
        bnfold.plan(made)
        inference._WORK = 200_000
"""


def test_no_slice_of_a_negative_size_ends_the_process_wherever_it_is():
    """Behind many operators, in local functions, whose sizes nobody sees, and in bodies."""
    done = subprocess.run(
        [sys.executable, "-c", SLICED_FURTHER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 8


ODD = """
import numpy as np, onnx, sys
from onnx import TensorProto, helper as h, numpy_helper as nh
import bnfold
from bnfold._onnx.files.load import why_invalid

def value(name, shape):
    return h.make_tensor_value_info(name, TensorProto.FLOAT, shape)

node, far, pool = h.make_node, 1 << 31, h.make_node("MaxPool", ["x"], ["p"], kernel_shape=[20, 20])
w = nh.from_array(np.ones(8, np.float32), "w")
kinds = {
    "no input": (22, [node("EyeLike", [""], ["y"], dtype=1)]),
    "no type": (22, [node("Q", ["x"], ["q"], domain="my"), node("EyeLike", ["q"], ["y"], dtype=1)]),
    "no map": (20, [node("DictVectorizer", [""], ["y"], domain="ai.onnx.ml")]),
    "no keys": (20, [node("LabelEncoder", [""], ["y"], domain="ai.onnx.ml", keys_int64s=[3])]),
    "no text": (20, [node("RegexFullMatch", [""], ["y"])]),
    "an axis of 32 bits": (17, [node("LayerNormalization", ["x", "w"], ["y", "m", "s"], axis=far)]),
    "more outputs": (18, [node("Split", ["x"], ["y", "a", "b"], num_outputs=1)]),
    "less than no axes": (13, [node("GatherND", ["x", "i"], ["y"], batch_dims=-7)]),
    "no list of places": (13, [pool, node("GatherND", ["p", "p"], ["y"])]),
}
# Behind a shape that onnx does not find out, operators are inferred one by one.
told = [
    node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["s0"]),
    node("Mul", ["s0", "two"], ["s1"]), node("Div", ["s1", "two"], ["s2"]),
    node("Concat", ["s2", "rest"], ["t"], axis=0), node("Reshape", ["x", "t"], ["r"]),
]
kinds["more outputs, told late"] = (
    18, [*told, node("Split", ["r"], ["y", "a", "b"], num_outputs=1)]
)
kinds["no axes, told late"] = (18, [*told, node("GatherND", ["r", "i"], ["y"], batch_dims=-3)])
for kind, (opset, nodes) in kinds.items():
    stored = [w, nh.from_array(np.zeros((1, 2), np.int64), "i")]
    for name, values in ("zero", [0]), ("two", [2]), ("rest", [3, -1]):
        stored.append(nh.from_array(np.array(values), name))
    size = "n" if kind.endswith("late") else 1
    plain = h.make_graph(nodes, "g", [value("x", [size, 3, 8, 8])], [value("y", None)], stored)
    body = h.make_graph(nodes, "b", [], [value("y", None)])
    branch = node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    flag = h.make_tensor("c", TensorProto.BOOL, [], [True])
    inner = h.make_graph([branch], "g", plain.input, plain.output, [*stored, flag])
    for graph in (plain, inner):
        imports = [h.make_opsetid(*each) for each in (("", opset), ("my", 1), ("ai.onnx.ml", 3))]
        made = h.make_model(graph, opset_imports=imports, ir_version=8)
        print(kind, flush=True)
        try:
            bnfold.plan(made)
        except bnfold.UsageError:
            pass
        why_invalid(made)
"""


def test_no_odd_operator_ends_the_process():
    """ONNX's inference ends it at some that no runtime takes, in bodies, too."""
    done = subprocess.run([sys.executable, "-c", ODD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 22


def test_operators_that_no_output_needs_and_nothing_runs_are_no_wrong_fold(tmp_path):
    """The original is compared without them, and its file does not run either."""
    made = graphs.model(
        graphs.conv("conv", "x", "c", (4, 3, 3, 3)),
        graphs.op("Transpose", "raw", "k", perm=[2, 0, 1]),
        graphs.op("Mul", "c k", "d"),
        x=(2, 8, 8, 3),
        y="x",
        weights={"raw": graphs.rand(1, 1, 4)},
    )
    onnx.save(made, tmp_path / "m.onnx")
    run = process("m.onnx", "-o", "o.onnx", cwd=tmp_path)
    assert run.code != 1 and "verification: fail" not in run.out
    assert "neither model runs" in run.out
