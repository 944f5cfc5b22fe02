import onnx
import pytest

from bnfold._run.source import saturations


def ending(body: str, opset: int = 17) -> onnx.ModelProto:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[2,3] x) => (float[2,3] y) '
    return onnx.parser.parse_model(head + "<int64[2] s = {2, 3}>" + body)


SOFTMAX = ending("{ y = Softmax<axis = 1>(x) }")


@pytest.mark.parametrize(
    "other, found",
    [
        (ending("{ y = Softmax<axis = 1>(x) }"), {"y": "Softmax"}),
        (ending("{ a = Abs(x) y = Softmax<axis = 1>(a) }"), {"y": "Softmax"}),
        (ending("{ a = Softmax<axis = 1>(x) y = Reshape(a, s) }"), {}),
        (ending("{ y = Softmax<axis = 0>(x) }"), {}),
        (ending("{ y = Softmax<axis = 1>(x) }", opset=12), {}),
        (ending("{ y = Sigmoid(x) }"), {}),
        (ending("{ a = Softmax<axis = 1>(x) y = Abs(a) }"), {}),
    ],
    ids=["same", "other input", "reshaped in one", "axis", "opset", "function", "not last"],
)
def test_only_the_same_last_function_may_be_left_out(
    other: onnx.ModelProto, found: dict[str, str]
) -> None:
    ahead = saturations(SOFTMAX, other)
    assert {output: each.function for output, each in ahead.items()} == found


def test_a_function_may_do_anything_whatever_its_name() -> None:
    """Both put out the same ahead of the Softmax, and then a function of theirs is another one."""

    def calling(factor: float) -> onnx.ModelProto:
        return onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17, "my" : 1]> g (float[2,3] x) => (float[2,3] y) '
            "{ a = Softmax<axis = 1>(x) y = my.Identity(a) } "
            '<domain: "my", opset_import: ["" : 17]> Identity (a) => (b) '
            f"{{ k = Constant<value_float = {factor}>() b = Mul(a, k) }}"
        )

    assert not saturations(calling(1.0), calling(2.0))
