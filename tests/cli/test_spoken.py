"""How much is said: -q, errors of the command line in the style of all others, completion."""

from __future__ import annotations

import pytest

from .command import bnfold, process, refused


@pytest.mark.parametrize("more", [(), ("-o", "out.onnx"), ("--no-verify",)])
def test_quiet_says_nothing_where_all_is_well(more, model, tmp_path):
    run = bnfold(model, "-q", *more, cwd=tmp_path)
    assert (run.code, run.out, run.err) == (0, "", "")


def test_quiet_tells_what_is_wrong(model, wrong, settled, strange):
    run = bnfold("verify", model, wrong, "-q")
    assert (run.code, run.lines[-1]) == (1, "verification: fail")
    assert bnfold("verify", model, model, "-q").out == ""
    assert bnfold("verify", model, model, "--prove", "-q").out == ""
    assert bnfold("verify", model, wrong, "--prove", "-q").out.startswith("refuted")
    run = bnfold(strange, "-q", "--no-prove")
    assert (run.code, run.lines[0]) == (3, f"{strange}:")
    assert "verification: inconclusive" in run.lines
    run = bnfold(settled, model, "--check", "-q")
    assert (run.code, run.lines[0]) == (1, f"{model}:")
    assert bnfold(settled, settled, "--check", "-q").out == ""


def test_quiet_changes_nothing_of_what_programs_read(model):
    loud, quiet = (bnfold(model, *q, "--output-format", "json") for q in ((), ("-q",)))
    assert loud.out == quiet.out != ""


def test_quiet_and_verbose(model, tmp_path):
    refused(bnfold(model, "-v", "-q"), "-v and -q exclude each other")
    (tmp_path / "pyproject.toml").write_text("[tool.bnfold]\nverbose = true\n")
    assert bnfold(model, "-q", cwd=tmp_path).out == ""
    (tmp_path / "pyproject.toml").write_text("[tool.bnfold]\nquiet = true\n")
    assert "what helps" in bnfold(model, "-v", cwd=tmp_path).out


@pytest.mark.parametrize(
    "args, words",
    [
        (["m.onnx", "--nothing"], ["no such option", "--nothing", "bnfold fold --help"]),
        (["m.onnx", "--seed", "one"], ["--seed", "'one'", "bnfold fold --help"]),
        (["m.onnx", "--output-format", "yaml"], ["'yaml'", "junit"]),
        (["verify", "a.onnx"], ["FOLDED", "bnfold verify --help"]),
        (["verfy", "a.onnx", "b.onnx"], ["'verfy'", "did you mean 'verify'"]),
        (["explain", "a", "b"], ["unexpected", "bnfold explain --help"]),
        (["explain", "zero-pading"], ["did you mean 'zero-padding'"]),
    ],
)
def test_errors_of_the_command_line_are_one_line(args, words):
    refused(bnfold(*args), *words)


@pytest.mark.parametrize(
    "typed, found",
    [
        ("bnfold mod", ["file,mod"]),
        ("bnfold ver", ["file,ver", "plain,verify"]),
        ("bnfold --in-p", ["plain,--in-place"]),
        ("bnfold --vers", ["plain,--version"]),
        ("bnfold model.onnx --chec", ["plain,--check"]),
        ("bnfold model.onnx --output-format js", ["plain,json"]),
        ("bnfold model.onnx -o fu", ["file,fu"]),
        ("bnfold verify a.onnx b", ["file,b"]),
        ("bnfold explain zero", ["plain,zero-padding"]),
    ],
)
def test_completion(typed, found):
    """click's protocol for bash: one line for each, its kind and what it is."""
    words = typed.split()
    run = process(
        env={
            "_BNFOLD_COMPLETE": "bash_complete",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(words) - 1),
        }
    )
    assert (run.code, run.lines, run.err) == (0, found, "")
