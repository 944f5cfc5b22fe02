"""A .pt2 file may be code: bnfold loads none that would run some, unless it is trusted.

Each file here leaves a mark if something of its own is run. PyTorch's own loader, in a process of
its own, shows that the mark is left: else the test would say nothing. A node that calls a function
is the exception: PyTorch's verifier refuses that program before it runs, in this release at least.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from bnfold._torch.program.untrusted import Untrusted, refuse_code  # noqa: E402

from ..cli.command import bnfold, refused  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

    def forward(self, x, more):
        half = x[:, :, : x.shape[2] // 2]
        return self.norm(self.conv(half)) * more["scale"], max(x.shape[0], 3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A program with free sizes, and inputs in containers."""
    free = torch.export.Dim.AUTO
    shapes = {"x": {0: free, 2: free}, "more": {"scale": None}}
    program = torch.export.export(
        Net().eval(), (torch.randn(4, 3, 8, 8), {"scale": torch.ones(1)}), dynamic_shapes=shapes
    )
    path = tmp_path_factory.mktemp("plain") / "m.pt2"
    torch.export.save(program, path)
    return path


def rebuilt(plain: Path, path: Path, edits: Mapping[str, Callable[[bytes], bytes]]) -> Path:
    """A copy in which the records whose names hold a text are edited."""
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            for part, edit in edits.items():
                content = edit(content) if part in name else content
            new.writestr(name, content)
    return path


class Marking:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def pickled(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Marking(mark), buffer)
    return buffer.getvalue()


def in_model(edit: Callable[[str], str]) -> dict[str, Callable[[bytes], bytes]]:
    return {"models/model.json": lambda content: edit(content.decode()).encode()}


def attacks(mark: Path) -> dict[str, dict[str, Callable[[bytes], bytes]]]:
    code = f"__import__('os').mkdir('{mark}')"
    text = json.dumps(code)[1:-1]

    def by_pickle(content: bytes) -> bytes:
        config = json.loads(content)
        config["config"]["conv.weight"]["use_pickle"] = True
        return json.dumps(config).encode()

    def calling(content: str) -> str:
        """A node that makes a folder when the program is run."""
        program = json.loads(content)
        graph = program["graph_module"]["graph"]
        name = {"name": "name", "arg": {"as_string": str(mark)}, "kind": 1}
        graph["nodes"].insert(
            0,
            {
                **graph["nodes"][0],
                "target": "torch.os.mkdir",
                "inputs": [name],
                "outputs": [],
                "name": "made",
            },
        )
        return json.dumps(program)

    def guarding(content: str) -> str:
        program = json.loads(content)
        program["guards_code"] = [code]
        return json.dumps(program)

    sizes = re.compile(r'("expr_str": ")[^"]*(")')
    return {
        "sample inputs": {"sample_inputs": lambda _: pickled(mark)},
        "a weight": {
            "model_weights_config": by_pickle,
            "weights/weight_0": lambda _: pickled(mark),
        },
        "a size": in_model(lambda content: sizes.sub(rf"\g<1>{text}\g<2>", content)),
        "a node": in_model(calling),
        "a guard": in_model(guarding),
    }


@pytest.mark.parametrize("way", ["sample inputs", "a weight", "a size", "a node", "a guard"])
def test_code_in_a_file_is_not_run(way, plain, tmp_path):
    mark = tmp_path / "mark"
    path = rebuilt(plain, tmp_path / "m.pt2", attacks(mark)[way])
    refused(bnfold(path, "-o", tmp_path / "o.pt2"), str(path), "--trust")
    refused(bnfold(path, "--check"), "--trust")
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["sample inputs", "a weight", "a size", "a guard"])
def test_pytorch_runs_it(way, plain, tmp_path):
    """The attacks are real: else the test above would say nothing. PyTorch refuses "a node"."""
    mark = tmp_path / "mark"
    path = rebuilt(plain, tmp_path / "m.pt2", attacks(mark)[way])
    code = (
        "import sys, torch; p = torch.export.load(sys.argv[1]); args, kwargs = p.example_inputs\n"
        "p.module()(*args, **kwargs)"
    )
    subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert mark.exists()


def changed(plain: Path, tmp_path: Path, key: str, value: object) -> Path:
    """The program with one entry changed: of its first node, of its signature, or of itself."""

    def edit(content: str) -> str:
        program = json.loads(content)
        graph_module = program["graph_module"]
        holders = (
            graph_module["graph"]["nodes"][0],
            graph_module["module_call_graph"][0]["signature"],
        )
        next((holder for holder in holders if key in holder), program)[key] = value
        return json.dumps(program)

    return rebuilt(plain, tmp_path / "m.pt2", in_model(edit))


def tree(context: dict[str, object]) -> str:
    """A container whose context PyTorch reads when it loads a program."""
    one = {"type": "collections.defaultdict", "context": json.dumps(context), "children_spec": []}
    return json.dumps([1, one])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", "torch.hub.load"),
        ("target", "torch.ops.load_library"),
        ("target", "torch.ops.aten.from_file.default"),
        ("target", "torch.load"),
        ("target", "_operator.methodcaller"),
        ("target", "math.__loader__.load_module"),
        ("name", "x = 1; import this"),
        ("name", "x\nimport this"),
        ("guards_code", ["L['x'].__class__"]),
        ("guards_code", ["L['x'].size().__reduce__()"]),
        ("guards_code", ["(lambda: 1)()"]),
        ("guards_code", ["[x for x in L]"]),
        ("guards_code", ["L['x'].size()[0] == 9 ** 9 ** 9"]),
        ("guards_code", ["Pow(Integer(9), Pow(Integer(9), Integer(9)))"]),
        ("guards_code", ["L['x'].size()[0] == 2 ** 1000"]),
        ("in_spec", tree({"default_factory_module": "os", "default_factory_name": "getcwd"})),
        ("in_spec", tree({"__enum__": True, "fqn": "os.environ", "name": "A"})),
        ("metadata", {"source_fn_stack": "x,torch.relu';y,torch.relu"}),
    ],
)
def test_what_else_is_refused(key, value, plain, tmp_path):
    with pytest.raises(Untrusted):
        refuse_code(changed(plain, tmp_path, key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", "_operator.floordiv"),
        ("target", "torch.sym_max"),
        ("target", "torch.ops.higher_order.cond"),
        ("target", "torch.ops.nobody.knows.it"),
        ("name", "layer1_0_conv"),
        ("in_spec", tree({"default_factory_module": "builtins", "default_factory_name": "list"})),
        ("metadata", {"source_fn_stack": "x,torch.relu;y,torch.relu", "stack_trace": "'"}),
        ("guards_code", ["L['x'].size()[0] >= 2 and L['more']['scale'].stride()[0] == 1"]),
        ("guards_code", ["Ne(Mod(L['x'].size()[2], 2), 1)"]),
        ("guards_code", ["math.floor(L['x'].size()[2] / 2) < 2 ** 63"]),
    ],
)
def test_what_a_program_may_hold(key, value, plain, tmp_path):
    refuse_code(changed(plain, tmp_path, key, value))


@pytest.mark.parametrize("name", ["data/aotinductor/model/x.so", "data/constants/custom_obj_0"])
def test_a_record_that_is_code(name, plain, tmp_path):
    path = rebuilt(plain, tmp_path / "m.pt2", {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"m/{name}", b"x")
    with pytest.raises(Untrusted):
        refuse_code(path)


def test_a_tensor_that_is_an_object(plain, tmp_path):
    def edit(content: bytes) -> bytes:
        config = json.loads(content)
        config["config"]["conv.weight"]["path_name"] = "custom_obj_0"
        return json.dumps(config).encode()

    path = rebuilt(plain, tmp_path / "m.pt2", {"model_weights_config": edit})
    with pytest.raises(Untrusted):
        refuse_code(path)


@pytest.mark.parametrize("reader", ["zipfile", "PyTorch"])
def test_what_one_reader_alone_sees(reader, plain, tmp_path):
    """PyTorch falls back to ``zipfile``, so what either of the two reads may be loaded."""
    path = rebuilt(plain, tmp_path / "m.pt2", attacks(tmp_path / "mark")["sample inputs"])
    content = path.read_bytes()
    # ``zipfile`` allows for bytes ahead of an archive, PyTorch for half an end behind the end.
    path.write_bytes(b"#" * 64 + content if reader == "zipfile" else content + b"PK\5\6")
    assert zipfile.is_zipfile(path) == (reader == "zipfile")
    with pytest.raises(RuntimeError) if reader == "zipfile" else nullcontext():
        torch._C.PyTorchFileReader(str(path))
    with pytest.raises(Untrusted):
        refuse_code(path)


def test_a_plain_program_needs_no_flag(plain, tmp_path):
    run = bnfold(plain, "-o", tmp_path / "o.pt2")
    assert run.code == 0, run.err
    assert bnfold(tmp_path / "o.pt2", "--check").code == 0


def test_a_file_that_is_trusted_is_loaded(plain, tmp_path):
    """The choice is the user's, and no configuration makes it."""
    strange = changed(plain, tmp_path, "guards_code", ["bool(3)"])
    refused(bnfold(strange, "--check"), "--trust")
    assert bnfold(strange, "--check", "--trust").code == 1
    (tmp_path / "pyproject.toml").write_text("[tool.bnfold]\ntrust = true\n")
    refused(bnfold(strange, "--check", cwd=tmp_path), "trust")
