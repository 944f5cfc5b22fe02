"""A pass of onnx-ir, alone or among others.

::

    from onnx_ir.passes import Sequential, common
    from bnfold.passes.onnx_ir import FoldPass

    result = Sequential(FoldPass(), common.RemoveUnusedNodesPass())(model)

Needs onnx-ir, which comes with onnxscript.
"""

from __future__ import annotations

import onnx_ir
from onnx_ir.passes import FunctionalPass, PassResult

from bnfold._api import fold, plan, verify
from bnfold._core.result import Plan
from bnfold._judge.verdict import end_to_end_lines
from bnfold.passes import judged

__all__ = ["FoldPass"]


class FoldPass(FunctionalPass):
    """Folds a model and gives a new one; the model that is given is not changed.

    With ``verify`` both are run and compared, if anything folds: `bnfold.passes.NotVerified` is
    raised where they differ, and a ``UserWarning`` says that it could not be judged. ``modified``
    of the result says whether anything was folded. The other options are those of `bnfold.fold`;
    what stays, and why, is in ``plan`` after a run.
    """

    def __init__(
        self,
        *,
        verify: bool = True,
        depthwise: bool = False,
        freeze_initializers: bool = False,
        assume_equal_dims: bool = False,
    ) -> None:
        super().__init__()
        self.verify = verify
        self.depthwise = depthwise
        self.freeze_initializers = freeze_initializers
        self.assume_equal_dims = assume_equal_dims
        self.plan: Plan | None = None

    def call(self, model: onnx_ir.Model) -> PassResult:
        """Fold; see the class. Raises `UsageError` for a model that cannot be read."""
        frozen, equal = self.freeze_initializers, self.assume_equal_dims
        self.plan = plan(
            model, depthwise=self.depthwise, freeze_initializers=frozen, assume_equal_dims=equal
        )
        folded = fold(
            model, depthwise=self.depthwise, freeze_initializers=frozen, assume_equal_dims=equal
        )
        if self.verify and self.plan.folds:
            result = verify(model, folded, freeze_initializers=frozen)
            name = model.graph.name or "the model"
            judged(result.status, name, end_to_end_lines(result, verbose=False))
        return PassResult(folded, modified=bool(self.plan.folds))
