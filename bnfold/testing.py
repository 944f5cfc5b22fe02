"""For tests: two models are the same function, or the test fails and says where they differ.

::

    from bnfold.testing import assert_equivalent

    def test_export():
        assert_equivalent("trained.onnx", "deployed.onnx")
"""

from __future__ import annotations

from typing import Any

from bnfold._api import verify
from bnfold._judge.verdict import end_to_end_lines
from bnfold._pipeline.any_kind import Model

__all__ = ["assert_equivalent"]

_ADVICE = {
    "fail": "The two are not the same function.",
    "inconclusive": (
        "Whether the two are the same function could not be judged: a model does not run, or its "
        "outputs on random inputs show nothing. Pass inputs that mean something to the model: "
        "inputs={name: array}, or the path of an .npz file."
    ),
}


def assert_equivalent(
    original: Model,
    folded: Model,
    args: tuple[Any, ...] | None = None,
    *,
    allow_inconclusive: bool = False,
    **options: Any,
) -> None:
    """Raise ``AssertionError`` unless two models are the same function, as `bnfold.verify` judges.

    Takes what `bnfold.verify` takes: paths, ``ModelProto``, ``onnx_graphsurgeon.Graph``, or two
    ``torch.nn.Module`` with example inputs ``args``; and all of its ``options``. The message has
    the differences with their tolerances, the first tensor that differs and the operators that may
    have done it. What cannot be judged fails too, unless ``allow_inconclusive``.
    Raises `UsageError` for models or inputs that cannot be read.
    """
    __tracebackhide__ = True
    result = verify(original, folded, args, **options)
    if result.status == "pass" or (result.status == "inconclusive" and allow_inconclusive):
        return
    lines = [_ADVICE[result.status], *end_to_end_lines(result, verbose=True)]
    raise AssertionError("\n".join(lines))
