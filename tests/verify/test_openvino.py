"""OpenVINO on the CPU as a second provider, in an environment of its own: its build of onnxruntime
takes the place of the usual one. Skipped where pip gets no such build.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from bnfold._run.providers import PROVIDERS

from ..cli.command import CHECKOUT

pytestmark = pytest.mark.slow

DIGITS = CHECKOUT / "examples" / "digits.onnx"
# All that bnfold needs, its dependency onnxruntime replaced.
PACKAGES = ("click", "ml_dtypes", "numpy", "onnx", "onnxruntime-openvino")
PATIENCE_S = 600

# What onnxruntime itself says of the shipped example: which providers are active, where operators
# ran, and how far each set of options is from the CPU, relative to the largest output.
WITHOUT_BNFOLD = """
import collections, json, sys
import numpy as np, onnxruntime as ort

def run(path, provider, options):
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.enable_profiling = True
    settings.profile_file_prefix = sys.argv[2]
    session = ort.InferenceSession(
        path, settings, providers=[(provider, options)], enable_fallback=0
    )
    x = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    (y,) = session.run(None, {"image": x})
    with open(session.end_profiling()) as file:
        events = json.load(file)
    ran = collections.Counter(
        event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and "provider" in event.get("args", {})
    )
    return y, session.get_providers(), ran

expected, _, _ = run(sys.argv[1], "CPUExecutionProvider", {})
found = []
for options in json.loads(sys.argv[3]):
    y, active, ran = run(sys.argv[1], "OpenVINOExecutionProvider", options)
    off = float(np.abs(y - expected).max() / np.abs(expected).max())
    found.append({"active": active, "ran": ran, "off": off})
print(json.dumps(found))
"""

# The command, with other options for OpenVINO.
WITH_OPTIONS = """
import json, sys
from dataclasses import replace
from bnfold._command.cli import main
from bnfold._run.providers import PROVIDERS
PROVIDERS["openvino"] = replace(PROVIDERS["openvino"], options=json.loads(sys.argv.pop(1)))
main(sys.argv[1:], "bnfold")
"""
BFLOAT16 = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}'}


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Environment:
    """A virtual environment with bnfold and OpenVINO's onnxruntime in it."""

    folder: Path

    def __call__(self, *command: object, program: str = "bnfold") -> Run:
        scripts = self.folder / ("Scripts" if os.name == "nt" else "bin")
        own = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
        done = subprocess.run(
            [str(scripts / program), *map(str, command)],
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if name not in own},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    def without_bnfold(self, *options: dict[str, str]) -> list[dict[str, object]]:
        prefix = self.folder / "profile"
        run = self("-c", WITHOUT_BNFOLD, DIGITS, prefix, json.dumps(options), program="python")
        assert run.code == 0, run.err
        return json.loads(run.out)


@pytest.fixture(scope="module")
def bnfold(tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp("openvino"))
    venv.create(environment.folder, with_pip=True)
    quiet = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    wanted = environment(*quiet, "--only-binary=:all:", *PACKAGES, program="python")
    if wanted.code:
        reasons = [line for line in wanted.err.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"pip gets no onnxruntime-openvino here: {(reasons or ['no reason'])[-1]}")
    own = environment(*quiet, "--no-deps", CHECKOUT, program="python")
    assert own.code == 0, own.err
    return environment


@pytest.fixture(scope="module")
def fused(bnfold):
    target = bnfold.folder / "fused.onnx"
    run = bnfold(DIGITS, "-o", target, "--provider", "cpu,openvino")
    assert (run.code, run.err) == (0, "")
    assert "verification: pass\n" in run.out
    return target


def test_onnxruntime_has_it_and_runs_operators_there(bnfold):
    """Without bnfold's help; the options that bnfold gives it are known there."""
    (found,) = bnfold.without_bnfold(dict(PROVIDERS["openvino"].options))
    assert "OpenVINOExecutionProvider" in found["active"]
    assert set(found["ran"]) == {"OpenVINOExecutionProvider"}
    assert found["off"] < 1e-5


@pytest.mark.parametrize("names", ["openvino", "cpu,openvino", "openvino,cpu"])
def test_a_right_fold_passes(names, bnfold, fused):
    run = bnfold("verify", DIGITS, fused, "--provider", names, "-v")
    assert (run.code, run.err) == (0, "")
    lines = run.out.splitlines()
    assert "  on openvino: pass" in lines
    assert lines[-1] == "verification: pass"


def test_the_report_names_both(bnfold, fused):
    report = bnfold.folder / "report.json"
    run = bnfold(
        DIGITS, "-o", bnfold.folder / "again.onnx", "--provider", "cpu,openvino", "--report", report
    )
    assert (run.code, run.err) == (0, "")
    checks = json.loads(report.read_text())["verification"]["end_to_end"]["providers"]
    assert [(c["provider"], c["status"], c["note"]) for c in checks] == [
        ("cpu", "pass", ""),
        ("openvino", "pass", ""),
    ]


def test_a_wrong_fold_fails(bnfold, fused):
    wrong = onnx.load(fused)
    weight = max(wrong.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(weight).copy()
    values[0] *= 1.01
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    target = bnfold.folder / "wrong.onnx"
    onnx.save(wrong, target)
    for names in ("openvino", "cpu,openvino"):
        run = bnfold("verify", DIGITS, target, "--provider", names)
        assert (run.code, run.err) == (1, "")
        assert "fail, difference " in run.out
        assert run.out.splitlines()[-1] == "verification: fail"


def test_what_else_is_missing_there_is_said(bnfold, fused):
    run = bnfold("verify", DIGITS, fused, "--provider", "openvino,cuda")
    assert run.code == 3
    assert run.err.startswith("note: the installed onnxruntime has no provider cuda")
    assert "  on cuda: inconclusive, this onnxruntime has no CUDAExecutionProvider" in run.out


def test_a_difference_in_both_models_is_the_provider_s_own_doing(bnfold, fused):
    """In bfloat16 both models are off alike, by far more than a wrong fold would be."""
    (found,) = bnfold.without_bnfold(BFLOAT16)
    if found["off"] < 1e-3:
        pytest.skip("OpenVINO knows no bfloat16 on this CPU")
    options = json.dumps(BFLOAT16)
    command = ("-c", WITH_OPTIONS, options, "verify", DIGITS, fused, "--provider", "openvino")
    run = bnfold(*command, program="python")
    assert (run.code, run.err) == (0, "")
    said = r"  on openvino: pass, onnxruntime [\d.]+ on openvino with its optimizations off gives "
    said += (
        r"something else for both models \(logits on .* inputs: difference .*\): that is its own"
    )
    assert re.search(said.strip(), " ".join(run.out.split()))
