"""``[tool.bnfold]`` in pyproject.toml: defaults, which the command line goes before."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from . import examples
from .command import bnfold, environment, process, refused, tree

NOTHING = "no-such-model.onnx"
"""What a file says is looked at first, so that an error of it needs no model."""


@pytest.fixture
def project(tmp_path):
    """Writes the table of the project that the test runs in."""

    def write(table, folder=tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "pyproject.toml"
        path.write_text(f"[tool.bnfold]\n{table}\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def free(tmp_path):
    """A model with a batch of any size."""
    made = examples.foldable()
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return examples.save(made, tmp_path / "free.onnx")


def told(run):
    """What a run under ``output-format = "json"`` said of the comparison."""
    assert run.err == ""
    return json.loads(run.out)["verification"]["end_to_end"]


def seed_of(run):
    return told(run)["seed"]


# --- which file counts --------------------------------------------------------------------------


def test_the_nearest_table_counts(model, project, tmp_path):
    """A file without the table hides none further up, and a nearer table replaces it whole."""
    project('output-format = "json"\nseed = 1')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert seed_of(bnfold(model, cwd=inner)) == 1
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'a'\n[tool.ruff]\n")
    assert seed_of(bnfold(model, cwd=inner)) == 1
    (inner / "pyproject.toml").write_text("[tool]\n")
    assert seed_of(bnfold(model, cwd=inner)) == 1
    project("seed = 2", tmp_path / "a")
    assert bnfold(model, cwd=inner).out.startswith("would fold ")
    assert seed_of(bnfold(model, "--output-format", "json", cwd=inner)) == 2
    project("", inner)
    assert seed_of(bnfold(model, "--output-format", "json", cwd=inner)) == 0


def test_the_folder_of_the_command_counts_and_not_that_of_the_model(model, project, tmp_path):
    project("seed = 1", tmp_path / "models")
    (tmp_path / "elsewhere").mkdir()
    inside = examples.save(examples.foldable(), tmp_path / "models" / "m.onnx")
    run = bnfold(inside, "--output-format", "json", cwd=tmp_path / "elsewhere")
    assert seed_of(run) == 0


def test_the_command_line_goes_first(model, project, tmp_path):
    project('output-format = "json"\nseed = 1\ndraw = ["large"]')
    run = bnfold(model, "--seed", "0", "--draw", "unsigned", cwd=tmp_path)
    assert seed_of(run) == 0
    assert [check["inputs"] for check in told(run)["checks"]] == ["unsigned"]
    assert bnfold(model, "--output-format", "text", cwd=tmp_path).lines[-3] == "verification: pass"


def test_it_can_be_ignored(model, project, tmp_path):
    project("seed = 1\nverbose = true")
    quiet = bnfold(model, "--no-config", cwd=tmp_path)
    assert "seed" not in quiet.out
    assert "inputs drawn with seed 1" in bnfold(model, cwd=tmp_path).out
    (tmp_path / "pyproject.toml").write_text("[tool.bnfold\n")
    assert bnfold(model, "--no-config", cwd=tmp_path).out == quiet.out


def test_the_same_file_is_for_both_commands(model, project, tmp_path):
    project('output-format = "json"\nseed = 3')
    run = bnfold("verify", model, model, cwd=tmp_path)
    assert (run.code, json.loads(run.out)["seed"]) == (0, 3)


@pytest.mark.parametrize("what", ["a folder", "a dangling link", "a pipe"])
def test_what_is_no_file_is_passed_over(what, model, project, tmp_path):
    project('output-format = "json"\nseed = 1')
    inner = tmp_path / "inner"
    inner.mkdir()
    if what == "a folder":
        (inner / "pyproject.toml").mkdir()
    elif what == "a dangling link":
        (inner / "pyproject.toml").symlink_to("nowhere")
    else:
        os.mkfifo(inner / "pyproject.toml")
    assert seed_of(bnfold(model, cwd=inner)) == 1


def test_in_a_folder_that_is_gone(model, tmp_path, monkeypatch):
    """There is no telling what lay above it; a model given in full can be read all the same."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    run = bnfold(model, "--check")
    assert (run.code, run.err) == (1, "")


# --- every key ----------------------------------------------------------------------------------


def test_every_key_at_once(free, project, tmp_path):
    project(
        """
        seed = 5
        draw = ["structured", " large "]
        dim = { n = [3, 1] }
        provider = "cpu"
        power = true
        rtol = 1
        atol = 1e-3
        threads = 1
        timeout = 600
        memory = "8 GB"
        output-format = "json"
        verbose = true
        """
    )
    found = told(process(free, cwd=tmp_path))
    assert found["seed"] == 5
    assert [check["inputs"] for check in found["checks"]] == ["structured n=3", "large n=1"]
    assert [check["provider"] for check in found["providers"]] == ["cpu"]
    assert len(found["power"]) == 2
    for check in found["checks"]:
        assert check["tolerance"] > 0.1  # about |output|, which a measured one is far from


def test_words_and_sizes_may_stand_alone(free, project, tmp_path):
    project('draw = "signed, large"\ndim = { n = 3 }\noutput-format = "json"')
    found = told(bnfold(free, cwd=tmp_path))
    assert [check["inputs"] for check in found["checks"]] == ["signed n=3", "large n=3"]


def test_power_is_told_of_in_words(model, project, tmp_path):
    assert "planted" not in bnfold(model, cwd=tmp_path).out
    project("power = true")
    assert "planted errors of 1 % show in 2 of 2 layers" in bnfold(model, cwd=tmp_path).out


def test_a_timeout_of_the_project(model, project, tmp_path):
    project("timeout = 0.001")
    for more in ((), ("--check",), ("--no-verify",)):
        run = bnfold(model, *more, cwd=tmp_path)
        assert (run.code, run.out) == (3, "")
        assert "time is up after 0.001 s" in run.err
    assert bnfold(model, "--timeout", "inf", cwd=tmp_path).code == 0


def test_paths_are_relative_to_the_file(model, project, tmp_path):
    project('inputs = "data/in.npz"\noutput-format = "json"')
    inner = tmp_path / "inner"
    for folder in (inner / "data", tmp_path / "data"):
        folder.mkdir(parents=True)
    np.savez(tmp_path / "data" / "in.npz", x=np.ones((2, 3, 8, 8), np.float32))
    (inner / "data" / "in.npz").write_bytes(b"not this one")
    found = told(bnfold(model, cwd=inner))
    assert {check["inputs"] for check in found["checks"]} == {"in.npz"}
    project(f"inputs = '{tmp_path / 'data'}'\noutput-format = 'json'")
    found = told(bnfold(model, cwd=inner))
    assert {check["inputs"] for check in found["checks"]} == {"in.npz"}
    (tmp_path / "data" / "in.npz").unlink()
    refused(bnfold(model, cwd=inner), str(tmp_path / "data"))


# --- what excludes each other -------------------------------------------------------------------


def test_inputs_and_kinds_to_draw_come_from_one_place(model, free, project, tmp_path):
    """What the command line says of inputs goes before what the file says of drawing them."""
    np.savez(tmp_path / "in.npz", x=np.ones((2, 3, 8, 8), np.float32))
    project('draw = ["large"]\ndim = { n = 2 }\noutput-format = "json"')
    run = bnfold(free, "--inputs", "in.npz", cwd=tmp_path)
    assert {check["inputs"] for check in told(run)["checks"]} == {"in.npz"}
    path = project('inputs = "in.npz"\noutput-format = "json"')
    run = bnfold(model, "--draw", "large", cwd=tmp_path)
    assert {check["inputs"] for check in told(run)["checks"]} == {"large"}
    run = bnfold(free, "--dim", "n=3", cwd=tmp_path)
    drawn = {"signed n=3", "unsigned n=3", "structured n=3"}
    assert {check["inputs"] for check in told(run)["checks"]} == drawn
    refused(bnfold(model, "--draw", "large", "--inputs", "in.npz", cwd=tmp_path), "--draw")
    path = project('inputs = "in.npz"\ndraw = "signed"')
    refused(bnfold(NOTHING, cwd=tmp_path), f"{path}: ", "--draw", "--inputs")


EVERYTHING = """
draw = ["large"]
dim = { n = 2 }
provider = ["cuda"]
power = true
rtol = 0.5
threads = 1
timeout = 600
"""


def test_what_the_file_says_does_not_stop_a_run_that_compares_nothing(model, project, tmp_path):
    """``n`` is no dimension of the model, and there may be no such provider."""
    project(f'{EVERYTHING}memory = "8GB"')
    assert process(model, "--check", cwd=tmp_path).code == 1
    project(EVERYTHING)
    assert bnfold(model, "--check", cwd=tmp_path).code == 1
    run = bnfold(model, "-o", "out.onnx", "--no-verify", cwd=tmp_path)
    assert (run.code, run.err) == (0, "")
    assert "not verified (--no-verify)" in run.lines
    refused(bnfold(model, "--check", "--power", cwd=tmp_path), "--check", "--power")
    refused(bnfold(model, "--no-verify", "--threads", "1", cwd=tmp_path), "--threads")


def test_what_the_file_says_is_not_for_programs_of_pytorch(project, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, tmp_path / "m.pt2")
    project(
        f"{EVERYTHING}\nseed = 3\noutput-format = 'json'\ninputs = 'none.npz'".replace(
            'draw = ["large"]\ndim = { n = 2 }\n', ""
        )
    )
    run = bnfold("m.pt2", cwd=tmp_path)
    assert run.code == 0
    assert seed_of(run) == 3
    refused(bnfold("m.pt2", "--threads", "2", cwd=tmp_path), "--seed", ".pt2")


# --- what is wrong with a file ------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, hint",
    [
        ("sed", "did you mean 'seed'?"),
        ("providers", "did you mean 'provider'?"),
        ("output_format", "did you mean 'output-format'?"),
        ("in-place", "there are inputs, seed, "),
        ("zzz", "there are inputs, seed, "),
        ('""', "there are inputs, seed, "),
    ],
)
def test_an_unknown_key(key, hint, project, tmp_path):
    path = project(f"{key} = 1")
    name = key.strip('"')
    refused(bnfold(NOTHING, cwd=tmp_path), f"{path}: [tool.bnfold] has no key {name!r}", hint)


@pytest.mark.parametrize(
    "line, words",
    [
        ("seed = 1.5", "a whole number"),
        ("seed = 1.0", "a whole number"),
        ("seed = true", "a whole number"),
        ('seed = "1"', "a whole number"),
        ("seed = 1979-05-27", "a whole number"),
        ("threads = 2.5", "a whole number"),
        ("timeout = '10'", "a number"),
        ("timeout = false", "a number"),
        ("rtol = [1e-3]", "a number"),
        ("power = 1", "true or false"),
        ("verbose = 'yes'", "true or false"),
        ("memory = 4000000000", "a text"),
        ("output-format = true", "a text"),
        ("output-format = ['json']", "a text"),
        ("inputs = ['a.npz']", "a path"),
        ("draw = 1", "a text or a list of them"),
        ("draw = []", "a text or a list of them"),
        ("draw = ['signed', 1]", "a text or a list of them"),
        ("provider = { cpu = true }", "a text or a list of them"),
        ("dim = 'n=2'", "a table of sizes"),
        ("dim = { n = 2.0 }", "a table of sizes"),
        ("dim = { n = [] }", "a table of sizes"),
        ("dim = { n = [1, true] }", "a table of sizes"),
        ("dim = { n = { m = 1 } }", "a table of sizes"),
    ],
)
def test_a_value_of_another_kind(line, words, project, tmp_path):
    path = project(line)
    key = line.split(" ")[0]
    wanted = f"{path}: {key} in [tool.bnfold] has to be {words}"
    refused(bnfold(NOTHING, cwd=tmp_path), wanted)


@pytest.mark.parametrize(
    "line, words",
    [
        ("seed = -1", "-1 is not in the range"),
        ("threads = -1", "1 to 1024"),
        ("threads = 1000000", "1 to 1024"),
        ("timeout = 0", "above 0"),
        ("timeout = nan", "above 0"),
        ("timeout = -inf", "above 0"),
        ("rtol = -1e-3", "0 or more"),
        ("rtol = nan", "0 or more"),
        ("atol = inf", "0 or more"),
        ("memory = 'much'", "such as 4GB"),
        ("memory = '0MB'", "such as 4GB"),
        ("memory = '1MB'", "bnfold itself takes"),
        ("output-format = 'yaml'", "'json'"),
        ("draw = ['signed', 'wild']", "no 'wild' inputs"),
        ("draw = ''", "no '' inputs"),
        ("provider = ['cpu', 'gpu']", "no provider 'gpu'"),
        ("dim = { n = 0 }", "sizes of 1 or more"),
        ("dim = { n = [2, -1] }", "sizes of 1 or more"),
    ],
)
def test_a_value_that_means_nothing(line, words, project, tmp_path):
    """The file and the key are named, whatever else is asked for."""
    path = project(line)
    key = line.split(" ")[0]
    args = ("verify", NOTHING, NOTHING) if key == "dim" else (NOTHING, "--check")
    refused(bnfold(*args, cwd=tmp_path), f"{path}: {key} in [tool.bnfold]", words)


def nested(depth):
    return b"[tool.bnfold]\nseed = " + b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "content, words",
    [
        (b"[tool.bnfold\nseed = 1", "is not valid TOML"),
        (b"[tool.bnfold]\nseed = 1\nseed = 2", "is not valid TOML"),
        (b"[tool.bnfold]\nseed = ", "is not valid TOML"),
        (b"[tool.bnfold]\nseed = 1\n# caf\xe9", "is not valid TOML"),
        ("[tool.bnfold]\nseed = 1".encode("utf-16"), "is not valid TOML"),
        (b"[tool.bnfold]\nseed = " + b"9" * 5000, "is not valid TOML"),
        (b"[tool.bnfold]\nseed = 2024-13-45", "is not valid TOML"),
        (nested(10_000), "is not valid TOML"),
        (b"[tool]\nbnfold = 3", "tool.bnfold has to be a table"),
        (b"[[tool.bnfold]]\nseed = 1", "tool.bnfold has to be a table"),
    ],
    ids=range(10),
)
def test_a_file_that_cannot_be_understood(content, words, tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_bytes(content)
    refused(bnfold(NOTHING, cwd=tmp_path), str(path), words)


def test_a_tool_that_is_no_table_is_not_ours(model, tmp_path):
    (tmp_path / "pyproject.toml").write_text("tool = 3\n")
    assert bnfold(model, "--check", cwd=tmp_path).code == 1


def test_a_broken_file_that_has_nothing_to_do_with_it(model, tmp_path):
    """Whether it has our table cannot be told: better said than passed over."""
    (tmp_path / "pyproject.toml").write_text("[project\n")
    refused(bnfold(model, cwd=tmp_path), "pyproject.toml", "is not valid TOML")


def test_a_file_that_cannot_be_read(bound, project, model, tmp_path):
    path = project("seed = 1")
    path.chmod(0)
    refused(process(NOTHING, cwd=tmp_path, command=bound), f"cannot read {path}", "permission")


def test_a_folder_above_that_cannot_be_searched(bound, project, tmp_path):
    """Nothing is known of what lies in it; that is no reason not to work."""
    closed = tmp_path / "closed"
    project("seed = -1", closed)
    inner = closed / "inner"
    model = examples.save(examples.settled(), tmp_path / "m.onnx")
    inner.mkdir()
    script = f"cd {inner} && chmod 0 {closed} && exec {' '.join(bound)} {model} --check"
    done = subprocess.run(["sh", "-c", script], capture_output=True, env=environment(), check=False)
    closed.chmod(0o755)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("--version",),
        ("fold", "--help"),
        ("-h",),
        ("verify", "a.onnx", "--help"),
        ("m.onnx", "--seed", "-1", "--help"),
        ("explain",),
        ("explain", "overflow"),
    ],
)
def test_help_does_not_mind_a_broken_file(args, tmp_path):
    wanted = bnfold(*args, cwd=tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.bnfold\n")
    assert (wanted.code, wanted.err) == (0, "")
    assert bnfold(*args, cwd=tmp_path) == wanted


def test_help_tells_of_what_bnfold_does_by_itself(project, tmp_path):
    project("seed = 77")
    assert "77" not in bnfold("fold", "--help", cwd=tmp_path).out


def test_nothing_is_left_of_a_refusal(model, project, tmp_path):
    project("timeout = -1")
    before = tree(tmp_path)
    refused(bnfold(model, "-o", "o.onnx", "--report", "r.json", cwd=tmp_path), "timeout")
    assert tree(tmp_path) == before


def test_the_example_in_the_module_is_a_file_that_is_read(tmp_path):
    """With the parser of Python 3.10 too, which is a package."""
    code = """
import sys, textwrap
from pathlib import Path
if sys.argv[1] == "tomli":
    import tomli
    sys.modules["tomllib"] = tomli
from bnfold._command import config as _config, options as _options
table = textwrap.dedent(_config.__doc__.split("::")[1].split("Each key")[0])
Path("pyproject.toml").write_text(table)
found = _config.project(_options._CONFIGURABLE)
assert found.values == {
    "draw": ["signed", "structured"], "dim": [("batch", (1, 4))],
    "provider": ["cpu", "cuda"], "timeout": 600,
}
Path("pyproject.toml").write_text("[tool.bnfold")
try:
    _config.project(_options._CONFIGURABLE)
except Exception as error:
    assert type(error).__name__ == "UsageError", error
"""
    for library in ("tomllib", "tomli"):
        pytest.importorskip(library)
        command = [sys.executable, "-c", code, library]
        subprocess.run(command, cwd=tmp_path, env=environment(), check=True)


@pytest.mark.parametrize(
    "line", ["trust = true", "follow-links = true", 'ops-library = "ops/my.so"']
)
def test_a_project_cannot_say_what_is_trusted(line, model, project, tmp_path):
    """The file may have come with the model."""
    path = project(line)
    refused(bnfold(model, "--check", cwd=tmp_path), f"{path}: ", "give --", "yourself")
