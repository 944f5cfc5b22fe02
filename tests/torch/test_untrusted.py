"""A .pt2 file may be code: bnfold loads none that would run some, unless it is trusted.

The rules themselves, one by one, are in `test_untrusted_rules`.
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from bnfold import UsageError  # noqa: E402
from bnfold._torch.program.expressions import Untrusted  # noqa: E402
from bnfold._torch.program.fold import load  # noqa: E402
from bnfold._torch.program.untrusted import refuse_code  # noqa: E402

from ..cli.command import bnfold, refused  # noqa: E402
from .archives import changed, in_model, rebuilt, saved  # noqa: E402


class Marking:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def pickled(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Marking(mark), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("plain"))


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


@pytest.mark.parametrize("name", ["data/aotinductor/model/x.so", "data/constants/custom_obj_0"])
def test_a_record_that_is_code(name, plain, tmp_path):
    path = rebuilt(plain, tmp_path / "m.pt2", {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"m/{name}", b"x")
    with pytest.raises(Untrusted, match="does not write"):
        refuse_code(path)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("path_name", "custom_obj_0", "which is no tensor"),
        ("path_name", "weight_0.pkl", "which is no tensor"),
        ("use_pickle", True, "is pickled"),
    ],
)
def test_a_tensor_that_is_an_object(key, value, why, plain, tmp_path):
    def edit(content: bytes) -> bytes:
        config = json.loads(content)
        config["config"]["conv.weight"][key] = value
        return json.dumps(config).encode()

    path = rebuilt(plain, tmp_path / "m.pt2", {"model_weights_config": edit})
    with pytest.raises(Untrusted, match=why):
        refuse_code(path)


def test_what_pytorch_alone_sees(plain, tmp_path):
    """``zipfile`` does not read an archive with half an end behind its end; PyTorch does."""
    path = rebuilt(plain, tmp_path / "m.pt2", attacks(tmp_path / "mark")["sample inputs"])
    path.write_bytes(path.read_bytes() + b"PK\5\6")
    assert not zipfile.is_zipfile(path)
    with pytest.raises(Untrusted, match="more than tensors"):
        refuse_code(path)


@pytest.mark.parametrize("ahead", [b"", b"#" * 64])
@pytest.mark.parametrize("what", ["example_inputs.pt", "exported_program.json"])
def test_the_form_of_older_versions(what, ahead, plain, tmp_path):
    """Where its reader of archives fails, PyTorch looks for this form with ``zipfile``."""
    mark = tmp_path / "mark"
    way = "sample inputs" if what == "example_inputs.pt" else "a size"
    with zipfile.ZipFile(rebuilt(plain, tmp_path / "new.pt2", attacks(mark)[way])) as new:
        name = next(name for name in new.namelist() if name.endswith("models/model.json"))
        program = new.read(name)
    version = json.loads(program)["schema_version"]
    records = {
        "version": f"{version['major']}.{version['minor']}",
        "serialized_exported_program.json": program,
        "serialized_state_dict.pt": b"",
        "serialized_constants.pt": b"",
        "serialized_example_inputs.pt": pickled(mark) if way == "sample inputs" else b"",
    }
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as old:
        for record, content in records.items():
            old.writestr(record, content)
    path.write_bytes(ahead + path.read_bytes())
    found = "more than tensors" if way == "sample inputs" else "more than arithmetic"
    with pytest.raises(Untrusted, match=found):
        refuse_code(path)
    assert not mark.exists()
    with suppress(Exception):
        torch.export.load(path)
    assert mark.exists(), "PyTorch does not run it: this test would show nothing"


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


@pytest.mark.parametrize("name", ["models/model.jsox", "models/extra/a.json", "data/weights/w.pkl"])
def test_a_record_that_pytorch_does_not_write(name, plain, tmp_path):
    """The loader takes whatever lies in some folders, whatever it is called."""
    path = rebuilt(plain, tmp_path / "m.pt2", {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"m/{name}", b"{}")
    with pytest.raises(Untrusted, match="does not write"):
        refuse_code(path)


class Root(torch.nn.Module):
    def forward(self, x):
        return x * torch.sym_sqrt(x.shape[0]) + x.shape[0] ** 2 // 3


class Branch(torch.nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


class Mapped(torch.nn.Module):
    def forward(self, x):
        return torch.vmap(lambda row: row * 2)(x)


class Named(torch.nn.Module):
    def forward(self, x, *, scale):
        return {"first": [x * scale["s"]], "second": (x, 3)}


@pytest.mark.parametrize("module", [Root, Branch, Mapped, Named])
def test_plain_programs_pass(module, tmp_path):
    words = {"scale": {"s": torch.ones(1)}} if module is Named else {}
    free = {"x": {0: torch.export.Dim.AUTO}} | ({"scale": {"s": None}} if words else {})
    program = torch.export.export(module().eval(), (torch.randn(4, 3),), words, dynamic_shapes=free)
    torch.export.save(program, tmp_path / "m.pt2")
    refuse_code(tmp_path / "m.pt2")


def test_a_keyword_that_is_code_is_not_run(tmp_path):
    """The whole way: PyTorch itself would run it, as the second half shows."""
    mark = tmp_path / "mark"
    made = ",".join(map(str, bytes(mark)))
    text = f"k,z:__import__(bytes((111,115)).decode()).mkdir(bytes(({made})).decode())"
    program = torch.export.export(
        Named().eval(), (torch.randn(4, 3),), {"scale": {"s": torch.ones(1)}}
    )
    torch.export.save(program, tmp_path / "plain.pt2")

    def edit(content: str) -> str:
        program = json.loads(content)
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        tree = json.loads(signature["in_spec"])
        tree[1]["children_spec"][1]["context"] = json.dumps({text: 1})
        signature.update(in_spec=json.dumps(tree), forward_arg_names=None)
        return json.dumps(program)

    path = rebuilt(tmp_path / "plain.pt2", tmp_path / "m.pt2", in_model(edit))
    refused(bnfold(path, "--check"), "--trust")
    assert not mark.exists()
    with suppress(Exception):
        torch.export.load(path).module()
    assert mark.exists(), "PyTorch does not run it: this test would show nothing"


@pytest.mark.parametrize("name", ["extra/more", "models/model.json"])
def test_records_that_are_larger_than_their_file(name, plain, tmp_path):
    """Compressed, gigabytes take kilobytes: they are not unpacked to be looked at."""
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        home = old.namelist()[0].partition("/")[0]
        for each in old.namelist():
            if each != f"{home}/{name}":
                new.writestr(each, old.read(each))
        new.writestr(f"{home}/{name}", b" " * (64 << 20))
    assert path.stat().st_size < 1 << 20
    refused(bnfold(path), str(path), "its records are", "bytes, more than it is itself")


def test_a_hole_is_refused_unread(tmp_path):
    path = tmp_path / "hole.pt2"
    path.touch()
    os.truncate(path, 1 << 38)
    refused(bnfold(path), str(path), "is not a .pt2 file that torch can load")
    with pytest.raises(UsageError, match="there is no such file"):
        load(tmp_path / "nowhere.pt2")
