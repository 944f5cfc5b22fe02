"""The GitHub action and the pre-commit hook, run as their runners do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .command import CHECKOUT, SCRIPT, TOO_LARGE, bnfold, environment

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ACTION = yaml.safe_load((CHECKOUT / "action.yml").read_text())
(HOOK,) = yaml.safe_load((CHECKOUT / ".pre-commit-hooks.yaml").read_text())


def evaluated(text: str, given: dict[str, str]) -> str:
    """An expression with the action's inputs; there is no other in the file."""
    made = re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: given[match[1]], text)
    assert "${{" not in made
    return made


def act(folder: Path, **given: str) -> tuple[int, str, str]:
    """Run the steps of the action but the installation; code, output and summary."""
    declared = ACTION["inputs"]
    assert set(given) <= set(declared)
    missing = [n for n, told in declared.items() if told["required"] and n not in given]
    assert not missing
    values = {name: told.get("default", "") for name, told in declared.items()} | given
    summary = folder / "summary.md"
    code, out = 0, ""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    if not SCRIPT.exists() and not (bin_folder / "bnfold").exists():
        script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {CHECKOUT / "cli.py"} "$@"\n'
        (bin_folder / "bnfold").write_text(script)
        (bin_folder / "bnfold").chmod(0o755)
    path = os.pathsep.join([str(bin_folder), str(SCRIPT.parent), os.environ["PATH"]])
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        if "pip install" in step["run"]:
            continue
        own = {name: evaluated(value, values) for name, value in step.get("env", {}).items()}
        run = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", evaluated(step["run"], {})],
            cwd=folder,
            env=environment(**own, PATH=path, GITHUB_STEP_SUMMARY=str(summary)),
            capture_output=True,
            text=True,
            check=False,
        )
        code, out = run.returncode, run.stdout + run.stderr
        if code:
            break
    return code, out, summary.read_text() if summary.exists() else ""


def test_the_action_is_one_that_github_takes():
    assert set(ACTION) == {"name", "description", "inputs", "runs"}
    assert ACTION["runs"]["using"] == "composite"
    for told in ACTION["inputs"].values():
        assert {"description", "required"} <= set(told)
        assert ("default" in told) != told["required"]
    # What a workflow passes reaches a shell through its environment alone.
    assert all("${{" not in step["run"] for step in ACTION["runs"]["steps"])


def test_the_example_workflow_gives_the_action_what_it_takes():
    workflow = yaml.safe_load((CHECKOUT / "examples" / "workflow.yml").read_text())
    steps = [s for s in workflow["jobs"]["models"]["steps"] if "bnfold" in s.get("uses", "")]
    assert len(steps) == 2
    for step in steps:
        assert set(step["with"]) <= set(ACTION["inputs"])
        assert "model" in step["with"]


def test_the_action_checks_a_model(model, settled, tmp_path):
    code, out, summary = act(tmp_path, model=str(model))
    assert (code, out.count("::error")) == (1, 1)
    assert "something is left to fold" in summary
    assert act(tmp_path, model=str(settled))[:2] == (0, "")


def test_the_action_compares_two_models(model, tmp_path):
    folded, wrong = tmp_path / "it's folded.onnx", tmp_path / "$(exit 9).onnx"
    assert bnfold(model, "-o", folded).code == 0
    assert bnfold(model, "-o", wrong, "--no-verify", factor=TOO_LARGE).code == 0
    code, out, summary = act(tmp_path, model=str(folded), original=str(model))
    assert (code, out) == (0, "")
    assert "pass" in summary
    code, out, _ = act(tmp_path, model=wrong.name, original=str(model))
    assert code == 1
    assert "at fault" in out


def test_the_action_hands_on_further_options(model, tmp_path):
    folded = tmp_path / "folded.onnx"
    assert bnfold(model, "-o", folded, "--no-verify").code == 0
    pair = {"model": str(folded), "original": str(model)}
    code, out, _ = act(tmp_path, **pair, args="--atol 0\n  --seed 3")
    assert (code, "::error" in out) == (1, True)
    code, out, _ = act(tmp_path, **pair, args="--rtol 1e-3 --output-format text")
    assert (code, out.splitlines()[-1]) == (0, "verification: pass")
    code, out, _ = act(tmp_path, model=str(folded), args="--output-format text -v")
    assert (code, out.splitlines()[0]) == (0, "nothing to fold")


@pytest.mark.parametrize(
    "args",
    [
        "; touch made",
        "$(touch made)",
        "`touch made`",
        "&& touch made",
        "| touch made",
        "> made",
        "\ntouch made",
        '" ; touch made ; "',
        "${MODEL:=made} $((1)) ~",
        "*",
    ],
)
def test_no_shell_reads_the_further_options(args, settled, tmp_path):
    """They are words for the command, which is one here that says what it was given."""
    echo = tmp_path / "bin" / "bnfold"
    echo.parent.mkdir()
    echo.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    echo.chmod(0o755)
    code, out, _ = act(tmp_path, model=str(settled), args=args)
    given = ["fold", "--check", "--output-format", "github", *args.split(), "--", str(settled)]
    assert (code, out.splitlines()) == (0, given)
    assert not (tmp_path / "made").exists()


def test_a_model_that_looks_like_an_option(tmp_path):
    """``--help`` is a file's name here, and there is no such file."""
    code, out, _ = act(tmp_path, model="--help")
    assert (code, "Usage" in out) == (2, False)


def test_the_hook_takes_all_files_at_once(model, settled):
    command, *arguments = shlex.split(HOOK["entry"])
    assert command == "bnfold"
    assert re.search(HOOK["files"], str(model))
    assert bnfold(*arguments, settled, settled).code == 0
    assert bnfold(*arguments, settled, model).code == 1


@pytest.mark.slow
def test_the_installation_of_the_action(tmp_path):
    """Into an environment of its own, from a copy of the checkout."""
    (step,) = (s for s in ACTION["runs"]["steps"] if "pip install" in s["run"])
    target = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", target], check=True)
    copy = tmp_path / "checkout"
    kept = ("bnfold", "pyproject.toml", "README.md", "LICENSE", "cli.py")
    copy.mkdir()
    for name in kept:
        source = CHECKOUT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    path = os.pathsep.join([str(target / "bin"), os.environ["PATH"]])
    subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env=environment(PATH=path, GITHUB_ACTION_PATH=str(copy)),
        check=True,
    )
    assert subprocess.run([target / "bin" / "bnfold", "--version"], check=False).returncode == 0
