"""Equal maps of one tensor: the first stays, and who read another one reads it, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

import bnfold
from bnfold._proof.certificate import certify

from .cli.command import bnfold as run_command
from .functions import DOMAIN, function
from .graphs import (
    bn,
    const,
    conv,
    counts,
    done,
    feeds,
    fold_told,
    folds,
    model,
    op,
    overridable,
    rand,
    run,
    stays,
    subgraph,
)
from .test_order import shuffled

TWO = np.float32(2.1)
NEXT = np.nextafter(TWO, np.float32(3))
ENDS = op("Sigmoid", "a", "y"), op("Tanh", "b", "z")
LEFT = {"Sigmoid": 2, "Tanh": 1}


def pair(first, second, *more, y="y z", **options):
    """Two maps that nothing takes in, each with a reader that no map passes."""
    return model(op("Sigmoid", "x", "s"), first, second, *(more or ENDS), y=y, **options)


def twice(value=TWO, kind="Mul", **attrs):
    return [const(kind, "s", name, value, **attrs) for name in "ab"]


def dropped(made, maps=1, **left):
    """Maps go, told as equal, and no output changes by a single bit."""
    once = fold_told(made)
    equal = [fold for fold in once.plan.folds if fold.is_equal]
    assert len(equal) == len(once.plan.folds) == maps
    assert all(fold.laws == ("drop as equal",) and not fold.merges for fold in equal)
    assert counts(once.folded) == left
    given = feeds(made)
    for old, new in zip(run(made, given), run(once.folded, given), strict=True):
        assert old.tobytes() == new.tobytes()
    return once


@pytest.mark.parametrize("kind", ["Add", "Div", "Mul", "Sub"])
@pytest.mark.parametrize("value", [TWO, rand(3, 1, 1)], ids=["one", "channels"])
@pytest.mark.parametrize("left", [False, True])
def test_of_equal_maps_the_first_is_left(kind, value, left):
    if kind == "Div" and left:
        pytest.skip("no map")
    once = dropped(pair(*twice(value, kind, left=left)), **LEFT, **{kind: 1})
    (gone,) = once.plan.folds
    assert (gone.into, gone.nodes) == (f"a_{kind.lower()}", (f"b_{kind.lower()}",))
    assert [k.node for k in once.plan.kept] == [gone.into]


def test_one_constant_in_two_orders_and_none():
    orders = op("Mul", "s k", "a"), op("Mul", "k s", "b")
    dropped(pair(*orders, weights={"k": TWO}), **LEFT, Mul=1)
    dropped(pair(op("Neg", "s", "a"), op("Neg", "s", "b")), **LEFT, Neg=1)


def test_maps_are_not_equal_by_numbers_that_engines_differ_about():
    """A sum is the border in onnxruntime. Rounded once it is the next number, which is stored."""
    border = np.float32(3)
    little = np.float32(0.375) * np.spacing(border)
    for stored in (border, np.nextafter(border, np.float32(4))):
        values = {"parts": np.array([border, little, little]), "k": stored}
        first = op("ReduceSum", "parts", "total", keepdims=0), values
        made = model(
            op("Sigmoid", "x", "s"),
            first,
            op("Mul", "s total", "a"),
            op("Mul", "s k", "b"),
            *ENDS,
            y="y z",
        )
        assert counts(fold_told(made).folded)["Mul"] == 2


def norms(**attrs):
    return pair(bn("n", "s", "a", 3), bn("m", "s", "b", 3, **attrs))


def test_norms_are_equal_with_equal_statistics_and_epsilon():
    stays(norms(), {})
    for made, left in ((norms(), 1), (norms(epsilon=0.02), 2)):
        values = {t.name: t for t in made.graph.initializer}
        for part in ("scale", "bias", "mean", "var"):
            values[f"m.{part}"].CopyFrom(values[f"n.{part}"])
            values[f"m.{part}"].name = f"m.{part}"
        assert counts(fold_told(made).folded) == {**LEFT, "BatchNormalization": left}


def chains(*last):
    """Two chains of maps along two axes, which do not become one map."""
    size = np.arange(1, 9, dtype=np.float32)
    return model(
        op("Sigmoid", "x", "s"),
        *(const("Add", "s", f"{n}0", size) for n in "ab"),
        *(const("Mul", f"{n}0", n, k) for n, k in zip("ab", last, strict=True)),
        *ENDS,
        y="y z",
    )


def test_equal_chains_become_one_as_far_as_they_are_equal():
    one, other = rand(3, 1, 1), rand(3, 1, 1)
    dropped(chains(one, one), 2, **LEFT, Add=1, Mul=1)
    dropped(chains(one, other), **LEFT, Add=1, Mul=2)


OUTSIDE = {
    "one bit": const("Mul", "s", "b", NEXT),
    "type": const("Div", "s", "b", TWO),
    "tensor": const("Mul", "x", "b", TWO),
    "shape": const("Mul", "s", "b", np.full((1, 1, 1, 1), TWO)),
    "as many channels": const("Mul", "s", "b", np.full((3, 1, 1), TWO)),
}


@pytest.mark.parametrize("second", OUTSIDE.values(), ids=OUTSIDE)
def test_a_step_outside_both_stay(second):
    stays(pair(const("Mul", "s", "a", TWO), second), {})


def test_a_difference_and_its_opposite_are_not_equal():
    stays(pair(const("Sub", "s", "a", TWO), const("Sub", "s", "b", TWO, left=True)), {})


def test_axes_of_old_operands_tell_maps_apart():
    """Sizes agree by accident: one constant along axis 1, and the same along axis 2."""
    scale = rand(3)
    axes = [const("Mul", "s", name, scale, axis=k, broadcast=1) for name, k in zip("ab", (1, 2))]
    made = pair(*axes, opset=6, ir=8, x=(2, 3, 3, 3))
    assert counts(fold_told(made, runtime=False).folded)["Mul"] == 2


def test_outputs_keep_their_names():
    stays(pair(*twice(), op("Tanh", "a", "r"), y="r b"), {})
    dropped(pair(*twice(), op("Tanh", "b", "z"), y="a z"), Sigmoid=1, Tanh=1, Mul=1)


def branching(inside, outside, *then):
    body = op(
        "If",
        "cond",
        "y",
        name="if",
        then_branch=subgraph(*then, op("Sigmoid", inside, "t"), y="t"),
        else_branch=subgraph(op("Tanh", inside, "e"), y="e"),
    )
    made = pair(*twice(), body, op("Tanh", outside, "z"), x={"x": (2, 3, 8, 8), "cond": ()})
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    return made


def test_bodies_keep_what_they_capture():
    stays(branching("b", "a"), {})
    dropped(branching("a", "b"), If=1, Mul=1, Sigmoid=2, Tanh=2)


def test_a_body_has_equal_maps_of_its_own():
    """One in a body is not dropped for one around it: each graph is by itself."""
    own = [const("Mul", "s", name, TWO, name=name) for name in "cd"]
    made = branching("a", "b", *own, op("Max", "c d", "m"), op("Tanh", "m", "u"))
    dropped(made, 2, If=1, Max=1, Mul=2, Sigmoid=2, Tanh=3)


def test_readers_that_ask_for_a_shape_or_read_twice_follow():
    ends = (
        op("Sigmoid", "a", "y"),
        op("Shape", "b", "n"),
        op("Max", "b b", "p"),
        op("Tanh", "p", "q"),
        op("Expand", "q n", "z"),
    )
    left = {"Expand": 1, "Max": 1, "Mul": 1, "Shape": 1, "Sigmoid": 2, "Tanh": 1}
    dropped(pair(*twice(), *ends), **left)


def test_what_is_left_of_them_folds():
    """A Conv that two equal maps read: one map is left, and goes into it. Nothing is left then."""
    made = model(conv("c", "x", "s", (4, 3, 3, 3)), *twice(rand(4, 1, 1)), *ENDS, y="y z")
    once = fold_told(made)
    assert counts(once.folded) == {"Conv": 1, "Sigmoid": 1, "Tanh": 1}
    assert [fold.laws for fold in once.plan.folds] == [("drop as equal",), ("absorb behind Conv",)]


def test_maps_that_fold_each_for_itself_do_so():
    ends = conv("c", "a", "y", (4, 3, 3, 3)), conv("d", "b", "z", (4, 3, 3, 3))
    folds(pair(*twice(), *ends), Sigmoid=1, Conv=2)


def test_a_value_that_a_caller_may_set_is_equal_to_none():
    made = overridable(pair(*twice()), "b_mul.k")
    stays(made, {"b_mul": "overridable-weight"})


def test_parts_of_gelus_stay_whole():
    def gelu(x, y):
        return [
            const("Div", x, f"{y}0", np.float32(np.sqrt(2))),
            op("Erf", f"{y}0", f"{y}1"),
            const("Add", f"{y}1", f"{y}2", np.float32(1)),
            op("Mul", f"{x} {y}2", f"{y}3"),
            const("Mul", f"{y}3", y, np.float32(0.5)),
        ]

    made = model(op("Sigmoid", "x", "s"), *gelu("s", "y"), *gelu("s", "z"), y="y z")
    plan = bnfold.plan(made)
    assert {kept.code for kept in plan.kept} == {"fused-operator"} and not plan.folds


@pytest.mark.parametrize("seed", range(3))
def test_in_any_order_of_nodes(seed):
    made = shuffled(pair(*twice()), seed)
    after = bnfold.fold(made)
    assert counts(after) == {**LEFT, "Mul": 1}
    for old, new in zip(run(made, feeds(made)), run(after, feeds(made)), strict=True):
        assert old.tobytes() == new.tobytes()


def test_told_apart_from_folds(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(pair(*twice()), path)
    for options, verb in (("--check",), "would drop"), (("-o", tmp_path / "f.onnx"), "dropped"):
        out = run_command(path, *options).out
        assert f"{verb} 1 affine operator that another one is equal to" in out
        assert "into" not in out.split("stay")[0]


# --- the proof ---------------------------------------------------------------------------------


def forged(made: ModelProto, change) -> list[str]:
    """What the certificates say of a fold whose record and whose file a bug has changed alike.

    ``change`` gets the nodes of the patch and the maps that take the place of others, by position.
    """
    once = done(made)
    after, applied = once.folded, once.applied
    assert {step.law for step in applied} == {"equal"}
    patch = applied[0].patch
    nodes = {
        p: n if n is None else NodeProto.FromString(n.SerializeToString())
        for p, n in patch.nodes.items()
    }
    equal = dict(patch.equal)
    change(nodes, equal)
    patch = replace(patch, nodes=nodes, equal=equal)
    steps = [
        replace(step, patch=patch, into=equal.get(step.maps[0], step.into)) for step in applied
    ]
    return [certificate.problem for certificate in certify(made, after, steps)]


def test_the_certificate_asks_for_equal_bits():
    made = pair(*twice())
    assert forged(made, lambda nodes, equal: None) == [""]
    other = pair(const("Mul", "s", "a", TWO), const("Mul", "s", "b", NEXT))
    other_made = ModelProto()
    other_made.CopyFrom(made)
    for tensor, source in zip(other_made.graph.initializer, other.graph.initializer, strict=True):
        tensor.CopyFrom(source)
    once = done(made)
    after, applied = once.folded, once.applied
    (found,) = certify(other_made, after, applied)
    assert "may differ" in found.problem and not found.holds


def test_the_certificate_asks_for_the_right_readers():
    made = pair(*twice())

    def the_reader(nodes, equal):
        ((gone, into),) = equal.items()
        return next(p for p, n in nodes.items() if n is not None and p != into), into, gone

    def reads_other(nodes, equal):
        nodes[the_reader(nodes, equal)[0]].input[0] = "s"

    def leaves_one(nodes, equal):
        del nodes[the_reader(nodes, equal)[0]]

    def changes_the_first(nodes, equal):
        nodes[the_reader(nodes, equal)[1]].input[0] = "x"

    def drops_the_reader(nodes, equal):
        nodes[the_reader(nodes, equal)[0]] = None

    def another_operator(nodes, equal):
        nodes[0] = made.graph.node[0]
        equal[the_reader(nodes, equal)[2]] = 0

    assert "does not read" in forged(made, reads_other)[0]
    assert "as before" in forged(made, leaves_one)[0]
    assert "does not read" in forged(made, changes_the_first)[0]
    assert "more than" in forged(made, drops_the_reader)[0]
    assert "not one kind" in forged(made, another_operator)[0]


def many(*values):
    """Maps of one tensor that one operator reads, each with a Tanh of its own, too."""
    names = [f"m{n}" for n in range(len(values))]
    maps = [const("Mul", "s", name, value) for name, value in zip(names, values, strict=True)]
    alone = [op("Tanh", name, f"y{name}") for name in names]
    outputs = " ".join(f"y{name}" for name in names)
    return pair(*maps, *alone, op("Max", " ".join(names), "z"), y=f"z {outputs}")


def test_an_operator_that_reads_many_equal_maps_is_copied_once():
    """Classes of two, and one of many: what is written down grows as the graph does."""
    for values in ([TWO] * 40, [np.float32(2 + n // 2) for n in range(40)]):
        made = many(*values)
        once = dropped(made, 40 - len(set(values)), Mul=len(set(values)), Max=1, Sigmoid=1, Tanh=40)
        patches = {id(step.patch): step.patch for step in once.applied}.values()
        copied = [n for patch in patches for n in patch.nodes.values() if n is not None]
        assert sum(len(node.input) for node in copied) <= 2 * (40 + 40 + len(values))
        assert all(certificate.holds for certificate in certify(made, once.folded, once.applied))


def test_the_certificates_of_equal_maps_need_each_other():
    """Two chains of maps: the second map is equal only if the first one is."""
    made = chains(rand(3, 1, 1), rand(3, 1, 1))
    for tensor in made.graph.initializer:
        if tensor.name.startswith("b_mul"):
            tensor.CopyFrom(next(t for t in made.graph.initializer if t.name == "a_mul.k"))
            tensor.name = "b_mul.k"
    assert forged(made, lambda nodes, equal: None) == ["", ""]
    once = done(made)
    changed = ModelProto()
    changed.CopyFrom(made)
    for tensor in changed.graph.initializer:
        if tensor.name == "b0_add.k":
            values = numpy_helper.to_array(tensor) + 1
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    found = certify(changed, once.folded, once.applied)
    assert ["may differ" in each.problem for each in found] == [True, False]
    last_alone = certify(made, once.folded, once.applied[1:])
    assert ["more than" in each.problem for each in last_alone] == [True]


def test_the_certificate_asks_that_what_takes_the_place_stays():
    made = many(TWO, TWO, TWO)

    def in_a_circle(nodes, equal):
        first, second = equal
        equal.update({first: second, second: first})

    assert all("does not stay" in problem for problem in forged(made, in_a_circle))


@pytest.mark.parametrize("counts", [(2, 2), (2, 1), (1, 2)])
def test_the_certificate_asks_for_one_output(counts):
    """An old norm may have five."""
    made = pair(bn("n", "s", "a", 3), bn("m", "s", "b", 3))
    for node in made.graph.node[1:3]:
        node.input[1:] = [f"n.{part}" for part in ("scale", "bias", "mean", "var")]

    def more(nodes, equal):
        ((gone, into),) = equal.items()
        for place, count in zip((into, gone), counts, strict=True):
            made.graph.node[place].output.extend(["more"] * (count - 1))
        nodes[into] = made.graph.node[into]

    assert "other inputs or outputs" in forged(made, more)[0]


def test_in_a_function_and_not_for_two_of_its_calls():
    """Equal maps of one call go in the function, for all calls; those of two calls inline none."""

    def made(*inner):
        nodes = [op("Constant", "", "k", value_float=2.5), *inner, op("Sigmoid", "a", "y")]
        return model(
            op("Tanh", "x", "s"),
            op("F", "s", "y", domain="my", name="first"),
            op("F", "s", "z", domain="my", name="second"),
            y="y z",
            functions=[function("F", "x", "y", nodes)],
            domains=DOMAIN,
        )

    one = [op("Mul", "x k", "m"), op("Tanh", "m", "a")]
    assert not bnfold.plan(made(*one)).folds
    two = [op("Mul", "x k", "m"), op("Mul", "x k", "n"), op("Max", "m n", "a")]
    once = fold_told(made(*two))
    assert [fold.graph for fold in once.plan.folds] == ["function my::F"]
    assert counts(once.folded)["Mul"] == 1 and len(once.folded.functions) == 1
