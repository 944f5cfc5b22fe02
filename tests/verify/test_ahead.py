"""Outputs that hide errors by nature are judged by the tensors ahead of them.

Each kind of output has a right fold, which passes, and a wrong one, which never does: its errors
show in the tensor ahead and not, or not always, in the output itself.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold._judge import ahead
from bnfold._run import draws, nodes
from bnfold._run.endings import Ahead, Endings

from ..graphs import Piece, bn, const, conv, model, op, subgraph, tensor

X = (1, 3, 8, 8)
INT, BOOL, FLOAT = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT


def ending(*pieces: Piece, kind: Any = FLOAT, **options: Any) -> ModelProto:
    """Conv → BN → t, and what puts out y of it; the type of y is a tensor's, or a whole type."""
    made = model(conv("conv", "x", "c", (4, 3, 3, 3)), bn("bn", "c", "t", 4), *pieces, x=X)
    for key, value in options.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))
    del made.graph.output[:]
    if isinstance(kind, onnx.TypeProto):
        made.graph.output.append(helper.make_value_info("y", kind))
    else:
        made.graph.output.append(helper.make_tensor_value_info("y", kind, None))
    return made


def indices(kind: str) -> onnx.GraphProto:
    body = subgraph(op(kind, "t", f"{kind}_of_t", axis=1), y=f"{kind}_of_t")
    body.output[0].type.tensor_type.elem_type = INT
    return body


TENSOR = helper.make_tensor_type_proto(FLOAT, None)
ENDINGS: dict[str, Callable[[], ModelProto]] = {
    "mask": lambda: ending(const("Greater", "t", "y", np.float32(0)), kind=BOOL),
    "mask in two steps": lambda: ending(
        const("Greater", "t", "a", np.float32(0)),
        const("Less", "t", "b", np.float32(0.5)),
        op("And", "a b", "y"),
        kind=BOOL,
    ),
    "largest": lambda: ending(op("ArgMax", "t", "y", axis=1), kind=INT),
    "places": lambda: ending(
        const("Greater", "t", "a", np.float32(0)), op("NonZero", "a", "y"), kind=INT
    ),
    "rounded": lambda: ending(op("Cast", "t", "y", to=TensorProto.INT32), kind=TensorProto.INT32),
    "sequence": lambda: ending(
        op("SequenceConstruct", "t t", "y"), kind=helper.make_sequence_type_proto(TENSOR)
    ),
    "parts": lambda: ending(
        op("SplitToSequence", "t", "y", axis=1), kind=helper.make_sequence_type_proto(TENSOR)
    ),
    "optional": lambda: ending(
        op("Optional", "t", "y"), kind=helper.make_optional_type_proto(TENSOR)
    ),
    "boxes": lambda: ending(
        op("Sigmoid", "t", "s"),
        op("Reshape", "s flat", "r"),
        op("Slice", "r zero four one", "u"),
        op("Transpose", "u", "box", perm=[0, 2, 1]),
        op("Slice", "r three four one", "score"),
        op("NonMaxSuppression", "box score most overlap least", "y"),
        kind=INT,
        flat=np.array([1, 4, 36]),
        zero=np.array([0]),
        one=np.array([1]),
        three=np.array([3]),
        four=np.array([4]),
        most=np.array([5]),
        overlap=np.float32(0.5),
        least=np.float32(0.9),
    ),
    "sampled": lambda: ending(
        op("Reshape", "t flat", "r"),
        op("Multinomial", "r", "y", dtype=TensorProto.INT32, sample_size=3),
        kind=TensorProto.INT32,
        flat=np.array([4, 36]),
    ),
    "branch": lambda: ending(
        op("ReduceMax", "x", "m", keepdims=0),
        const("Greater", "m", "p", np.float32(0)),
        op(
            "If",
            "p",
            "y",
            then_branch=indices("ArgMax"),
            else_branch=indices("ArgMin"),
        ),
        kind=INT,
    ),
    "signs": lambda: ending(op("Sign", "t", "y")),
    "one of many": lambda: ending(op("Hardmax", "t", "y", axis=1)),
}


def wrong(made: ModelProto, channel: int = 0, by: float = 0.02) -> ModelProto:
    """The same model, one channel of its Conv wrong by 2 %."""
    made = copy.deepcopy(made)
    name = next(node.input[1] for node in made.graph.node if node.op_type == "Conv")
    stored = next(tensor for tensor in made.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(stored).copy()
    values[channel] *= np.float32(1 + by)
    stored.CopyFrom(numpy_helper.from_array(values, name))
    return made


@pytest.mark.parametrize("kind", ENDINGS)
def test_a_right_fold_passes_and_a_wrong_one_never_does(kind: str) -> None:
    made = ENDINGS[kind]()
    folded = bnfold.fold(made)
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)
    result = bnfold.verify(made, folded)
    assert result.status == "pass", result
    assert result.power and all(planted.noticed for planted in result.power)
    assert bnfold.verify(made, wrong(folded)).status != "pass"


@pytest.mark.parametrize("kind", ["mask", "largest", "signs"])
def test_an_output_that_agrees_on_all_inputs_still_hides_errors(kind: str) -> None:
    """Planted errors show in it, on all inputs or some. Smaller ones of other channels need not."""
    made = ENDINGS[kind]()
    folded = bnfold.fold(made)
    for channel in range(4):
        for by in (0.01, 0.001):
            result = bnfold.verify(made, wrong(folded, channel, by))
            assert result.status != "pass", (channel, by, result)


def test_a_mask_of_many_pixels_hides_a_small_error() -> None:
    """Planted errors show in it on all inputs."""
    made = model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "t", 4),
        const("Greater", "t", "y", np.float32(0)),
        x=(1, 3, 40, 40),
    )
    made.graph.output[0].type.tensor_type.elem_type = BOOL
    result = bnfold.verify(made, wrong(bnfold.fold(made), 1, 1e-4))
    assert all(planted.noticed for planted in result.power)
    assert result.status == "inconclusive", result


def test_indices_beside_what_they_are_chosen_from() -> None:
    made = ending(op("ArgMax", "t", "y", axis=1), kind=INT)
    made.graph.output.add(name="t")
    folded = bnfold.fold(made)
    result = bnfold.verify(made, folded)
    assert result.status == "pass"
    assert {c.note for c in result.checks if c.output == "y"} <= {
        "", "compared at t, from where on both models are the same"
    }  # fmt: skip
    assert bnfold.verify(made, wrong(folded)).status == "fail"


def test_a_weight_that_is_an_output_says_nothing_against_the_rest() -> None:
    made = ending(op("Identity", "t", "y"))
    made.graph.output.append(helper.make_tensor_value_info("conv.w", FLOAT, None))
    folded = bnfold.fold(made)
    assert bnfold.verify(made, folded).status == "pass"
    stored = next(tensor for tensor in folded.graph.initializer if tensor.name == "conv.w")
    values = numpy_helper.to_array(stored) * np.float32(1 + 1e-3)
    stored.CopyFrom(numpy_helper.from_array(values, "conv.w"))
    assert bnfold.verify(made, folded).status == "fail"


# --- an ending that is not the same --------------------------------------------------------------


def masked(threshold: float = 0.25, **attributes: Any) -> ModelProto:
    made = ending(
        op("ArgMax", "t", "a", axis=1, **attributes),
        op("Greater", "t k", "b"),
        op("Cast", "b", "d", to=INT),
        op("Add", "a d", "y"),
        kind=INT,
        k=np.float32(threshold),
    )
    made.graph.input.append(helper.make_tensor_value_info("k", FLOAT, []))
    return made


def test_constants_of_the_ending_have_to_be_the_same() -> None:
    """By a little, so that no drawn value lies between; also where a caller may override them."""
    made, other = masked(), masked(np.nextafter(np.float32(0.25), np.float32(1)))
    for stored, same in zip(other.graph.initializer, made.graph.initializer, strict=True):
        if stored.name != "k":
            stored.CopyFrom(same)
    assert bnfold.verify(made, made).status == "pass"
    assert bnfold.verify(made, other).status == "inconclusive"
    assert Ahead("b", "b") in (Endings(made, other).ahead("y") or ())


def test_attributes_of_the_ending_have_to_be_the_same() -> None:
    made = masked(select_last_index=0)
    other = ModelProto.FromString(made.SerializeToString())
    node = next(node for node in other.graph.node if node.op_type == "ArgMax")
    next(a for a in node.attribute if a.name == "select_last_index").i = 1
    assert Ahead("t", "t") not in (Endings(made, other).ahead("y") or ())
    assert bnfold.verify(made, other).status == "inconclusive"


def sparse(value: float) -> ModelProto:
    made = ending(op("Mul", "t k", "m"), op("ArgMax", "m", "y", axis=1), kind=INT)
    values = helper.make_tensor("k", FLOAT, [1], [value])
    indices = helper.make_tensor("places", INT, [1], [0])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1]))
    return made


def test_what_is_not_read_counts_as_different() -> None:
    """Sparse constants, and data in other files, which may lie under the same name."""
    assert Ahead("t", "t") not in (Endings(sparse(1), sparse(2)).ahead("y") or ())
    made = masked()
    stored = next(tensor for tensor in made.graph.initializer if tensor.name == "k")
    stored.data_location = TensorProto.EXTERNAL
    stored.ClearField("raw_data")
    stored.external_data.add(key="location", value="weights")
    assert Ahead("b", "b") in (Endings(made, made).ahead("y") or ())


def calling(inner: str) -> ModelProto:
    """The ending calls a function that calls another one, which is not the same in both."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = [
        helper.make_function(
            "f", "outer", ["a"], ["b"], [op("inner", "a", "b", domain="f")], imports
        ),
        helper.make_function("f", "inner", ["a"], ["b"], [op(inner, "a", "b", axis=1)], imports),
    ]
    return model(
        conv("conv", "x", "t", (4, 3, 3, 3)),
        op("outer", "t", "y", domain="f"),
        x=X,
        functions=functions,
        domains={"f": 1},
    )


def test_functions_that_the_ending_calls_have_to_be_the_same() -> None:
    assert Endings(calling("ArgMax"), calling("ArgMin")).ahead("y") is None
    same = calling("ArgMax")
    assert Endings(same, wrong(calling("ArgMax"))).ahead("y") == [Ahead("t", "t")]
    assert Endings(same, same).ahead("y") == []


def test_an_identity_on_one_side_is_nothing() -> None:
    made = ending(op("ArgMax", "t", "y", axis=1), kind=INT)
    other = ending(op("Identity", "t", "i"), op("ArgMax", "i", "y", axis=1), kind=INT)
    assert Endings(made, other).ahead("y") == [Ahead("t", "t")]


# --- random numbers ------------------------------------------------------------------------------


def sampling(*pieces: Piece) -> ModelProto:
    """Conv → BN → t, noise on it as in a variational decoder, → Conv → BN."""
    return model(
        conv("conv", "x", "c", (4, 3, 3, 3)),
        bn("bn", "c", "t", 4),
        *pieces,
        op("Add", "t n", "z"),
        conv("conv_1", "z", "d", (4, 4, 3, 3)),
        bn("bn_1", "d", "y", 4),
        x=X,
    )


def looped() -> Piece:
    body = subgraph(
        op("Identity", "cond", "cond_out"),
        op("RandomNormalLike", "v", "more"),
        op("Add", "v more", "w"),
        x={"i": (7, ()), "cond": (9, ()), "v": None},
        y="cond_out w",
    )
    return op("Loop", "two _ t", "n", body=body)


NOISE: dict[str, list[Piece]] = {
    "like": [op("RandomNormalLike", "t", "n", scale=0.5)],
    "seeded": [op("RandomNormalLike", "t", "n", seed=3.0, mean=1.0)],
    "uniform": [op("RandomUniformLike", "t", "n", low=-1.0)],
    "of a shape": [op("RandomNormal", "", "n", shape=[1, 4, 6, 6])],
    "kept or not": [
        op("RandomUniformLike", "t", "u"),
        op("Bernoulli", "u", "b"),
        op("Mul", "t b", "n"),
    ],
    "in a loop": [op("Constant", "", "two", value=tensor(2, "two")), looped()],
}


@pytest.mark.parametrize("kind", NOISE)
def test_both_models_draw_the_same(kind: str) -> None:
    made = sampling(*NOISE[kind])
    folded = bnfold.fold(made)
    result = bnfold.verify(made, folded)
    assert result.status == "pass", result
    assert result.notes[0].startswith("both models draw the same numbers")
    assert bnfold.verify(made, wrong(folded)).status == "fail"


def test_other_noise_does_not_pass() -> None:
    made = sampling(*NOISE["like"])
    folded = bnfold.fold(made)
    node = next(node for node in folded.graph.node if node.op_type == "RandomNormalLike")
    node.attribute[0].f = 0.6
    assert bnfold.verify(made, folded).status != "pass"


def test_two_draws_of_one_model_are_not_the_same_numbers() -> None:
    """Their difference would be zero, and hide whatever is multiplied with it."""
    made = ending(
        op("RandomNormalLike", "t", "a"),
        op("RandomNormalLike", "t", "b"),
        op("Sub", "a b", "n"),
        op("Mul", "t n", "y"),
    )
    folded = bnfold.fold(made)
    folded.opset_import[0].version += 1  # so that nothing is the same for its operators' sake
    assert bnfold.verify(made, folded).status == "pass"
    assert bnfold.verify(made, wrong(folded)).status == "fail"


def test_more_draws_on_one_side_do_not_pass() -> None:
    made = sampling(*NOISE["like"])
    other = sampling(op("RandomNormalLike", "t", "a"), op("RandomNormalLike", "a", "n"))
    for stored, same in zip(other.graph.initializer, made.graph.initializer, strict=True):
        stored.CopyFrom(same)
    assert bnfold.verify(made, other).status != "pass"


def test_two_draws_are_not_one_that_is_read_twice() -> None:
    """Two draws are two tensors: their difference is not zero."""
    two = model(
        op("RandomNormalLike", "x", "a"),
        op("RandomNormalLike", "x", "b"),
        op("Sub", "a b", "n"),
        op("Add", "x n", "y"),
        x=X,
    )
    one = model(op("RandomNormalLike", "x", "a"), op("Sub", "a a", "n"), op("Add", "x n", "y"), x=X)
    assert bnfold.verify(two, one).status != "pass"
    assert bnfold.verify(one, two).status != "pass"
    assert bnfold.verify(two, two).status == "pass"


def two_draws(first: str, second: str, *, turned: bool = False) -> ModelProto:
    """Two operators of one form, each with a layer of its own behind it."""
    draws = [op("RandomNormalLike", "x", first), op("RandomNormalLike", "x", second)]
    noisy = [op("Add", f"x {first}", "a"), op("Add", f"x {second}", "b")]
    return model(
        *(draws[::-1] if turned else draws),
        *noisy,
        conv("conv", "a", "c", (4, 3, 1, 1)),
        bn("bn", "c", "d", 4),
        conv("other", "b", "e", (4, 3, 1, 1)),
        op("Sub", "d e", "y"),
        x=X,
    )


def of_the_same_numbers(made: ModelProto, other: ModelProto) -> ModelProto:
    for stored, same in zip(other.graph.initializer, made.graph.initializer, strict=True):
        stored.CopyFrom(same)
    return other


@pytest.mark.parametrize("names", [("n", "m"), ("4", "5")])
def test_draws_in_another_order_are_the_same_draws(names: tuple[str, str]) -> None:
    """By the names of what they write, or else in whatever order makes the two agree."""
    made = two_draws("n", "m")
    other = of_the_same_numbers(made, two_draws(*names, turned=True))
    folded = bnfold.fold(other)
    assert bnfold.verify(made, folded).status == "pass"
    assert bnfold.verify(made, wrong(folded)).status == "fail"


def test_more_draws_than_are_tried_in_every_order_say_nothing() -> None:
    def drawing(*names: str) -> ModelProto:
        draws = [op("RandomNormalLike", "x", name) for name in names]
        join = op("Concat", " ".join(names), "j", axis=1)
        return model(*draws, join, conv("conv", "j", "y", (4, 3 * len(names), 1, 1)), x=X)

    made = drawing(*"abcd")
    other = of_the_same_numbers(made, drawing(*"efgh"))
    assert bnfold.verify(made, other).status == "pass"
    assert bnfold.verify(made, wrong(other)).status == "inconclusive"
    named = of_the_same_numbers(made, drawing(*"abcd"))
    assert bnfold.verify(made, wrong(named)).status == "fail"


def test_what_draws_is_told_by_its_domain_and_by_the_functions_it_calls() -> None:
    def function(name: str, kind: str, domain: str = "") -> onnx.FunctionProto:
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
        inner = helper.make_node(kind, ["x"], ["y"], domain=domain)
        return helper.make_function("my", name, ["x"], ["y"], [inner], imports)

    made = ending(
        op("RandomNormalLike", "t", "a", domain="my"),
        op("Outer", "t", "b", domain="my"),
        op("Neg", "b", "y"),
    )
    made.opset_import.append(helper.make_opsetid("my", 1))
    made.functions.extend(
        [
            function("RandomNormalLike", "Relu"),
            function("Outer", "Inner", "my"),
            function("Inner", "RandomUniformLike"),
        ]
    )
    assert nodes.random_values(made) == {"b", "y"}


def test_an_operator_of_another_domain_is_compared_whatever_its_name() -> None:
    made = ending(op("RandomNormalLike", "t", "y", domain="my"))
    made.opset_import.append(helper.make_opsetid("my", 1))
    inner, imports = helper.make_node("Relu", ["x"], ["y"]), [helper.make_opsetid("", 17)]
    made.functions.append(
        helper.make_function("my", "RandomNormalLike", ["x"], ["y"], [inner], imports)
    )
    folded = bnfold.fold(made)
    assert bnfold.verify(made, folded).status == "pass"
    assert bnfold.verify(made, wrong(folded)).status == "fail"


def test_a_multinomial_is_no_draw_that_a_table_gives() -> None:
    assert Counter(draws._FIXED) == Counter(nodes.RANDOM - {"Multinomial"})


def test_a_tensor_ahead_without_a_check_settles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tensors ahead of the output differ or agree; the check of one of them is lost."""
    made = ending(
        conv("second", "x", "v", (4, 3, 3, 3)),
        bn("bn_2", "v", "u", 4),
        op("ArgMax", "t", "p", axis=1),
        op("ArgMin", "u", "q", axis=1),
        op("Sub", "p q", "y"),
        kind=INT,
    )
    folded = bnfold.fold(made)
    assert bnfold.verify(made, folded).status == "pass"
    compared = ahead.looked_at_again

    def losing(*given: Any) -> Any:
        found = compared(*given)
        return replace(found, checks=[each for each in found.checks if each.output != "u"])

    monkeypatch.setattr(ahead, "looked_at_again", losing)
    assert bnfold.verify(made, folded).status != "pass"
