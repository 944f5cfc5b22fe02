"""Local functions for tests: a block of Conv and norm with its calls, and any other."""

from __future__ import annotations

from onnx import AttributeProto, helper

from .graphs import model, op, positive, rand, tensor

DOMAIN = {"my": 1}


def function(name, inputs, outputs, nodes, attributes=(), opset=17, **more):
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1)]
    return helper.make_function(
        "my", name, inputs.split(), outputs.split(), list(nodes), imports, list(attributes), **more
    )


def refers(name, example, to):
    """An attribute whose value is that of the function's attribute ``to``."""
    attr = helper.make_attribute(name, example)
    return AttributeProto(name=name, type=attr.type, ref_attr_name=to)


def constant(name, value):
    return op("Constant", "", name, value=tensor(value, ""))


def convolving(own, *behind):
    """The nodes of a body: a Conv of ``x`` with a weight of its own, and what stands behind its
    ``c``. Constants of the body are those that ``own`` names: a factor ``k``, and ``s``, ``t``,
    ``m`` and ``v`` of a norm.
    """
    made = {"k": rand(3, 1, 1), "s": rand(3), "t": rand(3), "m": rand(3), "v": positive(3)}
    stored = [constant("w", rand(3, 3, 3, 3)), *(constant(name, made[name]) for name in own)]
    return [*stored, op("Conv", "x w", "c", name="conv"), *behind]


BLOCK = "x w s t m v"


def block(name="Block", **more):
    return function(
        name,
        BLOCK,
        "y",
        [
            op("Conv", "x w", "c", name="conv"),
            op("BatchNormalization", "c s t m v", "y", name="bn", epsilon=0.01),
        ],
        **more,
    )


def params(prefix, c_in, c_out):
    values = [rand(c_out, c_in, 3, 3), rand(c_out), rand(c_out), rand(c_out), positive(c_out)]
    return dict(zip((f"{prefix}.{n}" for n in "wstmv"), values))


def call(prefix, x, y, name="Block"):
    inputs = " ".join([x, *(f"{prefix}.{n}" for n in "wstmv")])
    return op(name, inputs, y, domain="my", name=f"call_{y}")


def two_calls(c_in, between, c_out):
    """Two calls of the block in a row, each with weights of its own; the sizes are of channels."""
    return model(
        call("a", "x", "h"),
        call("b", "h", "y"),
        functions=[block()],
        domains=DOMAIN,
        weights=params("a", c_in, between) | params("b", between, c_out),
    )


def calling(*body, attributes=(), **given):
    """A model that calls a local function, whose output is its own."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = helper.make_function("own", "F", ["a"], ["b"], body, imports[:1], [*attributes])
    made = model(op("F", "x", "y", domain="own", **given), x=(3, 1), opset=17)
    made.opset_import.append(imports[1])
    made.functions.append(inner)
    return made
