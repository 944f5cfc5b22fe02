"""What is printed: short by default, every fold and every kept map when asked."""

from __future__ import annotations

import shlex

import numpy as np
import onnx
import pytest

from bnfold._core.reasons import CODES
from bnfold._report.text import size_in_words

from ..graphs import bn, const, conv, model, op, rand, subgraph
from . import examples
from .command import CHECKOUT, TOO_LARGE, bnfold, refused


def kept_for_two_reasons():
    return model(
        conv("conv", "x", "c", (8, 3, 3, 3)),
        bn("bn1", "c", "b1", 8),
        op("Sigmoid", "b1", "s"),
        bn("bn2", "s", "b2", 8),
        op("Tanh", "b2", "t"),
        const("Mul", "t", "m", rand(1, 8, 6, 6)),
        op("Relu", "m", "y"),
    )


def test_the_default_groups_what_stays_by_reason(tmp_path):
    run = bnfold(examples.save(examples.foldable(), tmp_path / "m.onnx"))
    start = run.lines.index("2 affine operators stay:")
    assert run.lines[start + 1] == "  no-linear-operator: 2 BatchNormalization"
    assert run.lines[start + 2] == (
        "    bn2 stays: neither s_sigmoid ahead of it nor t_sigmoid behind it can take it in"
    )
    assert run.lines[start + 3] == (
        "-v lists all that stay; 'bnfold explain no-linear-operator' says what helps"
    )
    assert run.lines[start + 4].startswith("certificates: ")
    assert not any("→" in line for line in run.lines)


def test_each_reason_has_a_line(tmp_path):
    run = bnfold(examples.save(kept_for_two_reasons(), tmp_path / "m.onnx"))
    lines = [line.split(":")[0].strip() for line in run.lines if line.startswith("  ")]
    assert {"no-linear-operator", "not-per-channel"} <= set(lines)


@pytest.mark.parametrize("inside", [False, True])
def test_operators_that_made_a_weight_are_counted_as_gone(inside, tmp_path):
    """The table says what the file has: the Conv, with what reads it, in the body of an If, too."""
    norm = op("Conv", "x v", "c", name="conv"), bn("norm", "c", "r", 4)
    pieces = (*norm, op("Relu", "r", "y"))
    if inside:
        body = subgraph(*norm, op("Relu", "r", "out"), y="out")
        other = subgraph((op("Conv", "x u", "out2"), {"u": rand(4, 3, 3, 3)}), y="out2")
        pieces = (op("If", "cond", "y", then_branch=body, else_branch=other),)
    made = model(
        const("Mul", "raw", "w", rand(4, 1, 1, 1)), op("Identity", "w", "v"), *pieces,
        x={"x": (2, 3, 8, 8), "cond": ()}, weights={"raw": rand(4, 3, 3, 3)},
    )  # fmt: skip
    run = bnfold(examples.save(made, tmp_path / "m.onnx"), "-o", tmp_path / "n.onnx")
    left = 4 if inside else 2
    (row,) = (line.split() for line in run.lines if "all operators" in line)
    assert row[2:] == [str(left + 3), str(left)]
    nodes = list(onnx.load(tmp_path / "n.onnx").graph.node)
    nodes += [node for each in nodes for given in each.attribute for node in given.g.node]
    assert len(nodes) == left


@pytest.mark.parametrize("name", ["-m.onnx", "verify", "@m.onnx", "a b.onnx"])
def test_what_to_type_next_does_what_was_asked(name, tmp_path):
    """The options stay, and no name is taken for an option, a command or a list."""
    examples.save(examples.foldable(), tmp_path / "m.onnx").rename(tmp_path / name)
    words = {"-m.onnx": ("--no-verify", "--", name), "verify": ("./verify", "--no-verify")}
    run = bnfold(*words.get(name, (name, "--no-verify")), cwd=tmp_path)
    typed = shlex.split(run.lines[-1])
    assert typed[0] == "bnfold" and ("--no-verify" in typed) == (name != "-m.onnx")
    assert bnfold(*typed[1:], cwd=tmp_path).code == 0
    assert [path.name for path in tmp_path.iterdir() if "folded" in path.name]


def test_what_to_type_behind_a_check_has_its_options(tmp_path):
    """Without them another fold would be made than the one that is left."""
    made = examples.foldable()
    for tensor in made.graph.initializer:
        made.graph.input.add(name=tensor.name).type.tensor_type.elem_type = tensor.data_type
    examples.save(made, tmp_path / "m.onnx")
    given = ("--freeze-initializers", "--no-batchnorm", "--timeout", "60", "--no-config")
    run = bnfold("m.onnx", "--check", "-v", "--color", "never", *given, cwd=tmp_path)
    typed = shlex.split(run.lines[-1])
    assert run.code == 1 and not {"--check", "-v", "--color"} & set(typed)
    assert bnfold(*typed[1:], cwd=tmp_path).code == 0
    assert bnfold(typed[-1], "--check", *given, cwd=tmp_path).lines[0] == "nothing to fold"


def test_verbose_is_named_where_it_shows_more(tmp_path):
    run = bnfold(examples.save(examples.foldable(), tmp_path / "m.onnx"), "--no-verify")
    assert any(line.startswith("-v lists all that stay; 'bnfold explain ") for line in run.lines)
    run = bnfold(CHECKOUT / "examples" / "digits.onnx", "--no-verify")
    assert "-v lists" not in run.out and "'bnfold explain zero-padding' says what helps" in run.out


def test_verbose_lists_folds_and_kept_maps(model):
    run = bnfold(model, "-v")
    assert "  bn1 → conv1 (absorb behind Conv)" in run.lines
    start = run.lines.index("  no-linear-operator: 2 BatchNormalization")
    assert run.lines[start + 1] == f"    what helps: {CODES['no-linear-operator'].advice}"
    assert [line.split(":")[0].strip() for line in run.lines[start + 2 : start + 6]] == [
        "bn2 stays",
        "in full",
        "bn3 stays",
        "in full",
    ]
    assert "-v lists" not in run.out
    assert sum(" inputs: pass, difference " in line for line in run.lines) == 3


def test_the_table_says_what_became_less(model):
    run = bnfold(model)
    assert run.lines[0] == "would fold 1 of 3 affine operators into 1 operator"
    assert run.lines[1].split() == ["before", "after"]
    assert run.lines[2].split() == ["BatchNormalization", "3", "2"]
    assert run.lines[3].split() == ["all", "operators", "8", "7"]
    assert run.lines[4].startswith("  file size ")


def test_merges_are_counted_by_operator(tmp_path):
    """The sum inside is one operator before it becomes part of another."""
    same = {"pads": [1] * 4}
    made = model(
        conv("a", "x", "a0", (3, 3, 3, 3), **same),
        conv("b", "x", "b0", (3, 3, 1, 1)),
        op("Add", "a0 b0", "c"),
        const("Mul", "c", "d", rand(3, 1, 1)),
        op("Add", "x d", "e"),
        op("Relu", "e", "r"),
        conv("g", "r", "g0", (3, 1, 3, 3), group=3, **same),
        conv("h", "r", "h0", (3, 3, 1, 1)),
        op("Add", "g0 h0", "y"),
    )
    run = bnfold(examples.save(made, tmp_path / "m.onnx"))
    assert "would merge 5 linear operators into 1" in run.lines
    start = run.lines.index("1 linear operator is not merged with those around it:")
    assert run.lines[start + 1] == "  merge-cost: 1 Conv"
    assert run.lines[start + 2].startswith("    h stays: g and h side by side: ")


def test_an_operator_of_which_a_part_stays_counts_once(tmp_path):
    """Scale and shift of a map part ahead of zero padding: it goes nowhere, and stays once."""
    made = model(
        const("Sub", "x", "a", rand(3, 1, 1), name="mean"),
        const("Div", "a", "b", rand(3, 1, 1) + np.float32(1), name="std"),
        conv("conv", "b", "y", (4, 3, 3, 3), pads=[1] * 4),
    )
    run = bnfold(examples.save(made, tmp_path / "m.onnx"))
    assert run.lines[0] == "would fold 1 of 2 affine operators into 1 operator"
    table = {line.split()[0]: line.split()[-2:] for line in run.lines[2:5]}
    assert table["Div"] == ["1", "0"] and table["all"] == ["3", "2"]
    start = run.lines.index("1 affine operator stays:")
    assert run.lines[start + 1] == "  zero-padding: 1 Sub"
    told = "moving it past conv would change the border that zero padding makes"
    assert run.lines[start + 2] == f"    mean stays: {told}"


def test_what_is_left_of_two_operators_goes_by_its_own_name(tmp_path):
    """A scale passes zero padding: no Mul stays for that, but the Add behind it."""
    made = model(
        const("Mul", "x", "a", rand(3, 1, 1) + np.float32(1), name="gain"),
        const("Add", "a", "b", rand(3, 1, 1), name="offset"),
        conv("conv", "b", "y", (4, 3, 3, 3), pads=[1] * 4),
    )
    run = bnfold(examples.save(made, tmp_path / "m.onnx"), "-o", tmp_path / "f.onnx")
    start = run.lines.index("1 affine operator stays:")
    assert run.lines[start + 1] == "  zero-padding: 1 Add"
    assert run.lines[start + 2].startswith("    offset stays: moving it past conv ")
    left = [(n.name, n.op_type) for n in onnx.load(tmp_path / "f.onnx").graph.node]
    assert left == [("offset", "Add"), ("conv", "Conv")]


def test_the_bias_of_a_linear_operator_is_no_map_that_stays(tmp_path):
    """Only that of one without a place for it, which nothing else reads."""
    made = model(
        op("MatMul", "x w", "a"),
        const("Add", "a", "b", rand(6), name="bias"),
        op("Sigmoid", "b", "s"),
        op("MatMul", "s w", "c"),
        const("Add", "c", "d", rand(6), name="shared"),
        op("Sigmoid", "d", "t"),
        op("Tanh", "c", "u"),
        op("Mul", "t u", "y"),
        weights={"w": rand(6, 6)},
        x=(1, 2, 6),
    )
    path = examples.save(made, tmp_path / "m.onnx")
    run = bnfold(path)
    start = run.lines.index("1 affine operator stays:")
    assert run.lines[start + 2].startswith("    shared stays: ")
    assert "bias" not in run.out
    run = bnfold(path, "-v")
    start = run.lines.index("1 bias of a linear operator:")
    assert run.lines[start + 3].startswith("    bias stays: a_matmul has no bias")


def test_long_names_lose_their_middle_in_an_example(tmp_path):
    """TensorFlow's converter names a fused operator by all of its parts."""
    name = ";".join(f"model_1/batch_normalization_{k}/FusedBatchNormV3" for k in range(5))
    made = examples.foldable()
    made.graph.node[5].name = name
    run = bnfold(examples.save(made, tmp_path / "m.onnx"))
    (line,) = [line for line in run.lines if " stays: " in line]
    shown = line.partition(" stays: ")[0].strip()
    assert len(shown) == 79 and shown.startswith("model_1/batch_n") and shown.endswith("NormV3")
    assert f"    {name} stays: " in bnfold(tmp_path / "m.onnx", "-v").out


def test_batch_norms_come_first(tmp_path):
    made = model(
        conv("conv", "x", "c", (8, 3, 3, 3)),
        op("Sigmoid", "c", "s0"),
        *(
            piece
            for k in range(3)
            for piece in (
                const("Mul", f"s{k}", f"m{k}", rand(1, 8, 6, 6)),
                op("Tanh", f"m{k}", f"s{k + 1}"),
            )
        ),
        bn("bn", "s3", "b", 8),
        op("Tanh", "b", "y"),
    )
    run = bnfold(examples.save(made, tmp_path / "m.onnx"))
    start = run.lines.index("4 affine operators stay:")
    groups = [line for line in run.lines[start:] if line.startswith("  ") and line[2] != " "][:2]
    assert groups == ["  no-linear-operator: 1 BatchNormalization", "  not-per-channel: 3 Mul"]


def test_what_to_type_next_can_be_typed(tmp_path):
    path = examples.save(examples.foldable(), tmp_path / "it's a model.onnx")
    run = bnfold(path)
    at = run.lines.index("nothing was written; to fold it, type:")
    words = shlex.split(run.lines[at + 1])
    assert words[0] == "bnfold" and bnfold(*words[1:]).code == 0
    again = bnfold(words[-1])
    assert again.lines[0] == "nothing to fold" and "type" not in again.out
    assert "type:" not in bnfold(path, "-o", tmp_path / "out.onnx").out
    assert shlex.split(bnfold(path, "--check").lines[-1]) == words


@pytest.mark.parametrize(
    "size, text",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (123456, "123 kB"),
        (999_700, "1.00 MB"),
        (25_600_000, "25.6 MB"),
        (12_345_000_000, "12.3 GB"),
        (1_234_000_000_000, "1234 GB"),
    ],
)
def test_sizes_have_three_digits(size, text):
    assert size_in_words(size) == text


def test_a_fold_that_fails_says_by_how_much(model):
    run = bnfold(model, factor=TOO_LARGE)
    assert any(
        line.startswith("  conv1 ← bn1: ") and "units in the last place off" in line
        for line in run.lines
    )
    assert "  y on signed inputs: fail, difference " in run.out


@pytest.mark.parametrize("code", ["no-gain", "overflow"])
def test_explain(code):
    run = bnfold("explain", code)
    assert (run.code, run.err) == (0, "")
    assert run.lines == [code, f"  {CODES[code].meaning}", f"  What helps: {CODES[code].advice}"]


def test_explain_lists_every_code():
    run = bnfold("explain")
    assert run.code == 0
    assert [line for line in run.lines if not line.startswith(" ")] == list(CODES)
    assert all(line.startswith("  ") for line in run.lines[1::2])


def test_explain_an_unknown_code():
    refused(bnfold("explain", "no-such-code"), "'no-such-code'", "'bnfold explain' lists them")


def test_help_of_folding():
    run = bnfold("fold", "--help")
    assert (run.code, run.err) == (0, "")
    for option in ("--output", "--in-place", "--no-verify", "--inputs", "--seed", "--report"):
        assert option in run.out


def test_help_says_what_exit_codes_mean():
    text = " ".join(bnfold("--help").out.split())
    for meaning in ("0 done", "1 verification failed", "2 wrong usage", "3 could not be judged"):
        assert meaning in text
    for command in ("explain", "fold", "verify"):
        assert f" {command} " in text
    assert "..." not in text.replace("[ARGS]...", "")


def test_the_first_argument_may_be_the_command_or_the_model(model):
    assert bnfold("fold", model).out == bnfold(model).out
