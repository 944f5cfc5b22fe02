"""HardSigmoid takes a uniform map in, and so does a Clip, as the HardSigmoid that it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold
from bnfold._core import bounded
from bnfold._core.laws import Edit

from ..graphs import DOUBLE, FLOAT, HALF, const, conv, counts, model, op, overridable, rand, run
from ..verify.folds import folded as checked
from .holding import holds
from .nets import MAPS, ahead, behind, goes, stays

X = (2, 4, 4, 4)  # The sizes of all axes but one agree by accident.
UNIFORM = ("number", "minus", "constant", "line")


def clip(x, y, low=0.0, high=6.0):
    held = {f"{y}.low": np.float32(low), f"{y}.high": np.float32(high)}
    return op("Clip", f"{x} {y}.low {y}.high", y, name="clip"), held


def hard_swish(*rest, x=X, three=3.0, **options):
    """``x·clip(x + 3, 0, 6)`` with what follows it."""
    return model(
        op("Tanh", "x", "r"),
        const("Add", "r", "a", np.float32(three), name="three"),
        clip("a", "c"),
        *rest,
        x=x,
        **options,
    )


SPELLINGS = {
    "Mul, then Div": (op("Mul", "r c", "m"), const("Div", "m", "y", np.float32(6))),
    "Div, then Mul": (const("Div", "c", "d", np.float32(6)), op("Mul", "r d", "y")),
    "Mul by a sixth": (op("Mul", "r c", "m"), const("Mul", "m", "y", np.float32(1 / 6))),
    "a Conv that takes the factor": (op("Mul", "r c", "m"), conv("conv", "m", "y", (4, 4, 3, 3))),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_hard_swish_is_a_hard_sigmoid_and_a_product(spelling):
    made = hard_swish(*SPELLINGS[spelling])
    data = {"x": 4 * rand(*X)}
    turned = goes(made, data)
    assert counts(turned).get("Clip", 0) == 0
    (node,) = (node for node in turned.graph.node if node.op_type == "HardSigmoid")
    assert node.name == "clip"
    assert list(node.input) == ["r"]
    numbers = {a.name: a.f for a in node.attribute}
    assert numbers == {"alpha": np.float32(1 / 6), "beta": np.float32(1 / 2)}
    plan = bnfold.plan(made)
    assert any("turn Clip into HardSigmoid" in fold.laws for fold in plan.folds)
    assert {k: n for k, n in plan.after.items() if n} == counts(turned)


def test_a_hard_swish_with_an_affine_layer_of_its_own_loses_its_sum_too():
    """The Div stands while the sum is looked at; after that, one of the two would still stand."""
    made = hard_swish(
        *(op("Mul", "r c", "m"), const("Div", "m", "d", np.float32(6))),
        const("Mul", "d", "s", np.float32(1.3)),
        const("Add", "s", "t", np.float32(0.2)),
        conv("conv", "t", "y", (4, 4, 3, 3), pads=[1] * 4),
    )
    assert counts(goes(made, left=1)) == {
        "Tanh": 1,
        "HardSigmoid": 1,
        "Mul": 1,
        "Add": 1,
        "Conv": 1,
    }


def test_bounds_in_attributes_go_as_well():
    made = model(
        op("Tanh", "x", "r"),
        const("Add", "r", "a", np.float32(3), name="three"),
        op("Clip", "a", "c", min=0.0, max=6.0),
        *SPELLINGS["Mul, then Div"],
        x=X,
        opset=10,
    )
    (node,) = (node for node in goes(made).graph.node if node.op_type == "HardSigmoid")
    assert {a.name for a in node.attribute} == {"alpha", "beta"}


@pytest.mark.parametrize("low, high", [(0, 6), (0, 1), (-1, 2.5), (2, 3)])
@pytest.mark.parametrize("kind", UNIFORM)
def test_a_clip_that_is_also_read_by_an_output_takes_in_what_leaves_no_map(kind, low, high):
    """What is an output may not change: only between 0 and 1 a HardSigmoid is all there is."""
    made = model(op("Tanh", "x", "r"), MAPS[kind]("r", "a", 4), clip("a", "y", low, high), x=X)
    if (low, high) == (0, 1):
        assert counts(goes(made)) == {"Tanh": 1, "HardSigmoid": 1}
        (fold,) = bnfold.plan(made).folds
        assert fold.laws[-2:] == ("turn Clip into HardSigmoid", "absorb ahead of Clip")
    else:
        stays(made, "graph-output", "no-linear-operator")


@pytest.mark.parametrize("kind", [kind for kind in MAPS if kind not in UNIFORM])
def test_a_map_with_numbers_for_each_channel_stays(kind):
    """As many channels as rows and columns."""
    for middle in (clip("a", "c", 0, 1), op("HardSigmoid", "a", "c")):
        made = model(op("Tanh", "x", "r"), MAPS[kind]("r", "a", 4), middle, op("Tanh", "c", "y"))
        stays(typed(made), "not-carried", "no-linear-operator")


def typed(made):
    for size, dim in zip(X, made.graph.input[0].type.tensor_type.shape.dim):
        dim.dim_value = size
    return made


@pytest.mark.parametrize("kind", [*UNIFORM, "nothing"])
def test_a_hard_sigmoid_takes_in_a_map_of_any_sign(kind):
    middle = op("HardSigmoid", "a", "c", alpha=0.3, beta=0.4)
    made = model(op("Tanh", "x", "r"), _map(kind, "r", "a"), middle, op("Tanh", "c", "y"), x=X)
    turned = goes(made)
    assert counts(turned) == {"Tanh": 2, "HardSigmoid": 1}
    assert bnfold.plan(made).folds[0].laws[-1] == "absorb ahead of HardSigmoid"


def test_a_hard_sigmoid_without_attributes_has_those_of_onnx():
    made = model(_map("line", "x", "a"), op("HardSigmoid", "a", "y"), x=X)
    numbers = {a.name: a.f for a in goes(made).graph.node[0].attribute}
    assert numbers == pytest.approx({"alpha": 0.2 * 1.6, "beta": 0.5 - 0.2 * 0.5})


def _map(kind, x, y):
    if kind == "nothing":
        return const("Mul", x, y, np.float32(0), name="map")
    return MAPS[kind](x, y, 4)


def test_a_map_with_a_scale_of_0_leaves_a_constant():
    made = hard_swish(*SPELLINGS["Mul, then Div"])
    made.graph.node[1].op_type = "Mul"
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32(0), "three.k"))
    holds(made)


def test_nothing_of_what_is_put_out_goes_into_a_hard_sigmoid():
    for kind in UNIFORM:
        stays(behind(lambda x, y: [op("HardSigmoid", x, y)], kind), "not-carried")


@pytest.mark.parametrize("bounds", [(6.0, 6.0), (7.0, 6.0), (None, 6.0), (0.0, None)])
def test_a_clip_that_is_flat_everywhere_or_open_is_none(bounds):
    """Of min = max and min > max nothing is divided, and a missing bound is not 0."""
    names = [f"c.{n}" if bound is not None else "_" for n, bound in enumerate(bounds)]
    held = {f"c.{n}": np.float32(b) for n, b in enumerate(bounds) if b is not None}
    made = model(
        op("Tanh", "x", "r"),
        const("Add", "r", "a", np.float32(3), name="map"),
        (op("Clip", " ".join(["a", *names]), "c", name="clip"), held),
        *SPELLINGS["Mul, then Div"],
        x=X,
    )
    stays(made, says="the shift does not pass")


@pytest.mark.parametrize("bound", ["c.low", "c.high"])
def test_bounds_that_a_caller_may_override_stay(bound):
    made = overridable(hard_swish(*SPELLINGS["Mul, then Div"]), bound)
    stays(named(made), says="its bounds cannot be changed")


def test_bounds_that_another_operator_reads_are_kept_for_it():
    more = op("Clip", "r c.low c.high", "z", name="other")
    made = hard_swish(more, *SPELLINGS["Mul, then Div"], y="y z")
    assert counts(goes(made)) == {"Tanh": 1, "Clip": 1, "HardSigmoid": 1, "Mul": 1}


def test_a_graph_output_in_between_keeps_its_values():
    rest = SPELLINGS["Mul, then Div"]
    stays(named(hard_swish(*rest, y="y c")), says="c is an output of the graph")
    stays(named(hard_swish(*rest, y="y a")), says="a is an output of the graph")


def test_a_clip_that_someone_else_reads_too_stays():
    made = hard_swish(op("Tanh", "c", "z"), *SPELLINGS["Mul, then Div"], y="y z")
    stays(named(made), "no-linear-operator", "shared-output", "not-carried")


def test_what_the_clip_reads_may_not_be_read_as_it_was():
    made = hard_swish(op("Tanh", "a", "z"), *SPELLINGS["Mul, then Div"], y="y z")
    stays(named(made), "no-linear-operator", "shared-output", "not-carried")


def named(made):
    made.graph.node[1].name = "map"
    return made


def test_clips_alone_and_bounds_that_move_as_before_are_left():
    """ReLU6 networks have no operator to save; where moved bounds save one, they move."""
    made = model(
        conv("a", "x", "ca", (4, 4, 3, 3)), clip("ca", "r"), conv("b", "r", "y", (4, 4, 1, 1)), x=X
    )
    assert holds(made).SerializeToString() == made.SerializeToString()
    for kind in ("number", "constant", "line"):
        assert counts(goes(ahead(lambda x, y: [clip(x, y)], kind)))["Clip"] == 1
        assert counts(goes(behind(lambda x, y: [clip(x, y)], kind)))["Clip"] == 1


def test_a_map_that_goes_no_further_does_not_turn_a_clip():
    """Behind a Tanh nothing takes the 6."""
    stays(named(hard_swish(op("Tanh", "c", "y"))), "no-linear-operator", "no-gain")


def test_a_shift_that_zero_padding_would_see_is_taken_in():
    """Bounds that move let the shift pass, which the padded Conv cannot take; a HardSigmoid keeps
    it, where what comes out is 0 at the lower bound.
    """
    for low, left in ((0.0, 0), (-1.0, 1)):
        made = model(
            op("Tanh", "x", "r"),
            MAPS["constant"]("r", "a", 4),
            clip("a", "c", low, 1.5),
            conv("conv", "c", "y", (4, 4, 3, 3), pads=[1] * 4),
            x=X,
        )
        if left:
            stays(made, "zero-padding")
        else:
            assert "HardSigmoid" in counts(goes(made))


def test_two_maps_one_after_the_other_are_taken_in_by_one_clip():
    made = model(
        op("Tanh", "x", "r"),
        const("Mul", "r", "m", np.float32(-2), name="minus"),
        op("Transpose", "m", "t", perm=[0, 2, 3, 1]),
        const("Add", "t", "a", np.float32(0.7), name="more"),
        clip("a", "y", 0, 1),
        x=X,
    )
    turned = goes(made)
    numbers = {a.name: a.f for n in turned.graph.node for a in n.attribute if a.type == 1}
    assert numbers == pytest.approx({"alpha": -2, "beta": 0.7})


@pytest.mark.parametrize(
    "shift, goes_in", [(3.0, True), (17.9, True), (18.5, False), (-12.5, False)]
)
def test_a_sum_that_would_cancel_too_much_is_refused(shift, goes_in):
    """``β = 3`` and ``β = −2`` are the last."""
    made = named(hard_swish(*SPELLINGS["Mul, then Div"], three=shift))
    if goes_in:
        goes(made)
    else:
        stays(made)


def test_float32_is_off_by_no_more_than_the_law_says():
    """``(1 + 3m)`` units in 2⁻²⁴, of the width."""
    generator = np.random.default_rng(0)
    for shift in (3.0, 0.1, 17.0):
        made = hard_swish(const("Div", "c", "y", np.float32(6)), three=shift)
        made.graph.node[0].op_type = "Identity"
        turned = bnfold.fold(made)
        assert "HardSigmoid" in counts(turned)
        x = generator.uniform(-shift - 1, 7 - shift, X).astype(np.float32)
        t = float(np.float32(shift))
        wanted = np.clip(x.astype(np.float64) + t, 0, 6) / 6
        m = max(t / 6, abs(1 - t / 6))
        (made_,) = run(turned, {"x": x})
        assert np.abs(made_ - wanted).max() <= (1 + 3 * m) * 2.0**-24


@pytest.mark.parametrize(
    "elem, high, turns",
    [
        (FLOAT, 6.0, True),
        (HALF, 6.0, True),
        (HALF, 6e4, False),  # 1/60000 is below the normal numbers of float16.
        (FLOAT, 6e4, True),
        (DOUBLE, 6.0, False),  # onnxruntime has no HardSigmoid of it.
    ],
)
def test_types_that_hold_the_numbers(elem, high, turns):
    np_type = onnx.helper.tensor_dtype_to_np_dtype(elem).type
    made = model(
        op("Tanh", "x", "r"),
        const("Add", "r", "a", np_type(high / 2)),
        (
            op("Clip", "a lo hi", "c"),
            {"lo": np.zeros((), np_type), "hi": np.asarray(high, np_type)},
        ),
        op("Mul", "r c", "m"),
        const("Div", "m", "y", np_type(high)),
        x=X,
        elem=elem,
    )
    turned = bnfold.fold(made)
    assert ("HardSigmoid" in counts(turned)) is turns
    if turns:
        x = (rand(*X) * 2).astype(np_type)
        (wanted,), (found,) = run(made, {"x": x}), run(turned, {"x": x})
        assert np.abs(wanted - found).max() <= (4e-3 if elem == HALF else 1e-6)


def test_before_opset_6_there_is_none_to_become():
    made = model(
        op("Tanh", "x", "r"),
        const("Add", "r", "a", np.float32(3)),
        op("Clip", "a", "c", min=0.0, max=1.0),
        op("Tanh", "c", "y"),
        x=X,
        opset=5,
    )
    assert "HardSigmoid" not in counts(bnfold.fold(made))


WRONG = {
    "alpha": lambda edit: {"alpha": edit["alpha"] * 1.01, "beta": edit["beta"]},
    "beta": lambda edit: {"alpha": edit["alpha"], "beta": edit["beta"] + 0.01},
    "turned": lambda edit: {"alpha": -edit["alpha"], "beta": edit["beta"]},
}


def test_a_bound_that_stands_for_none_is_no_place_to_look_at():
    """Numbers around it would overflow. Exporters write about the largest number for no bound."""
    most = float(np.finfo(np.float32).max) / 2
    made = model(
        conv("conv", "x", "a", (4, 4, 1, 1)),
        clip("a", "c", 0.0, most),
        MAPS["number"]("c", "y", 4),
        x=X,
    )
    certificates = checked(made).certificates()
    assert all(certificate.holds for certificate in certificates)
    assert "cross" in {certificate.law for certificate in certificates}


def test_a_wide_clip_is_checked_as_closely():
    def fold():
        return checked(
            model(
                op("Tanh", "x", "r"),
                const("Sub", "r", "a", np.float32(5000), left=True),
                clip("a", "c", 0, 10000),
                const("Div", "c", "y", np.float32(10000)),
                x=X,
            )
        )

    assert all(certificate.holds for certificate in fold().certificates())
    right = bounded.HardSigmoid.taking

    def wrong(self, map_, form=None):
        return Edit(WRONG["alpha"](right(self, map_, form).values), form)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded.HardSigmoid, "taking", wrong)
        bad = fold()
    assert any(certificate.fails for certificate in bad.certificates())


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("shape", [X, (1, 1), ("n", 3)])
@pytest.mark.parametrize("shift, low", [(3.0, 0.0), (80.0, 78.0), (-80.0, -86.0)])
def test_a_wrong_number_does_not_get_past_the_certificate(what, shape, shift, low, monkeypatch):
    """Also where normal numbers would see one flat end alone, and in a tensor of one element."""

    def fold():
        made = model(
            op("Tanh", "x", "r"),
            const("Sub", "r", "a", np.float32(shift), left=True),
            clip("a", "c", low, low + 6),
            const("Sub", "c", "d", np.float32(low)),
            const("Div", "d", "y", np.float32(6)),
            x=shape,
        )
        return checked(made)

    assert all(certificate.holds for certificate in fold().certificates())
    right = bounded.HardSigmoid.taking

    def wrong(self, map_, form=None):
        edit = right(self, map_, form)
        return Edit(WRONG[what](edit.values), form)

    monkeypatch.setattr(bounded.HardSigmoid, "taking", wrong)
    bad = fold()
    monkeypatch.undo()
    assert "HardSigmoid" in counts(bad.folded)
    assert any(certificate.fails for certificate in bad.certificates())
