"""A model to fold whose inputs get preprocessing, or lose it; what was done is told."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from bnfold._core.preprocessing import Pairs, Preprocessing
from bnfold._core.result import Plan
from bnfold._errors import UsageError
from bnfold._onnx.files.load import understood
from bnfold._onnx.fold import FoldedWeights
from bnfold._onnx.front.exposing import Exposed, expose
from bnfold._onnx.front.ports import told_type
from bnfold._onnx.front.prepending import Entered, enter
from bnfold._onnx.front.tidying import tidy
from bnfold._pipeline.module_options import ModuleOptions
from bnfold._pipeline.outcome import InputChange
from bnfold._system.records import record

if TYPE_CHECKING:
    from bnfold._judge.settings import Settings


@record(frozen=True)
class Front:
    """What was done to a model before it is folded.

    ``before`` has inputs as they were, ``tidied`` how many operators have gone that did nothing, by
    type.
    """

    entered: Sequence[Entered] = ()
    exposed: Sequence[Exposed] = ()
    before: Mapping[str, str] = field(default_factory=dict)
    tidied: Mapping[str, int] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether the model is another one."""
        return bool(self.entered or self.exposed or self.tidied)

    @property
    def rewritten(self) -> bool:
        """Whether more was done than to put operators in front of all others."""
        return bool(self.exposed or self.tidied) or any(
            each.weights or each.removed for each in self.entered
        )

    @property
    def owed(self) -> dict[str, Preprocessing]:
        """What callers have to do with inputs from now on."""
        return {each.name: each.values for each in self.exposed}

    def original(self, weights: FoldedWeights) -> FoldedWeights:
        """Weights by the names, and in the order, that the model had before."""
        old = {new: held for each in self.entered for new, held in each.weights.items()}
        values, touched = dict[str, Any](), set[str]()
        for name, value in weights.values.items():
            was, numbers = old.get(name, (name, value))
            values[was] = numbers
            if name in weights.touched:
                touched.add(was)
        return FoldedWeights(values, frozenset(touched))

    def told(self, model: ModelProto, plan: Plan) -> tuple[InputChange, ...]:
        """What has become of each input, as the folded model has it."""
        after = {value.name: told_type(value) for value in model.graph.input}
        changes = []
        for each in self.entered:
            name, own = each.port.name, set(each.nodes)
            stay = tuple(node.op_type for node in model.graph.node if node.name in own)
            why = [kept.message.partition(";")[0] for kept in plan.kept if kept.node in own]
            if each.stays:
                why.append(f"the order of channels is an operator, for {each.stays}")
            changes.append(
                InputChange(
                    name,
                    self.before[name],
                    after[name],
                    each.port.wanted,
                    False,
                    stay,
                    tuple(dict.fromkeys(why)),
                    tuple(each.reordered),
                )
            )
        for one in self.exposed:
            now = after[one.name]
            changes.append(InputChange(one.name, now, now, one.values, True, one.operators))
        return tuple(changes)


def in_front(
    model: ModelProto,
    wanted: Pairs,
    exposing: bool,
    base_dir: Path | None,
    path: Path | None,
    tidying: bool = False,
) -> Front:
    """Put preprocessing in front of a model, or take it out, in place; first tidy it, if asked.

    Raises `UsageError` where an input does not fit, or has no normalization to take out.
    """
    with understood(model, path):
        tidied = tidy(model, base_dir) if tidying else {}
        before = {value.name: told_type(value) for value in model.graph.input}
        exposed = expose(model, base_dir) if exposing else ()
        entered = enter(model, dict(wanted), base_dir) if wanted and not exposing else ()
    return Front(entered, exposed, before, tidied)


def behind_module(
    model: Any, options: ModuleOptions, preprocessing: Pairs, reorder: bool
) -> tuple[Any, ModuleOptions, Pairs]:
    """A module behind preprocessing and options for it; anything else as it is.

    The example inputs that were given are those of the module. With ``reorder`` the order of
    channels goes into weights. Raises `UsageError` unless the module takes one tensor, and for
    what a copy of it cannot do.
    """
    library = sys.modules.get("torch")
    if not preprocessing or library is None or not isinstance(model, library.nn.Module):
        return model, options, preprocessing
    from bnfold._torch.module.copying import copied
    from bnfold._torch.module.preprocessed import behind, picture_shapes

    args = options.args if isinstance(options.args, tuple) else ()
    one = len(args) == 1 and isinstance(args[0], library.Tensor) and not options.kwargs
    if not one or len(preprocessing) != 1 or preprocessing[0][0]:
        raise UsageError(
            "preprocessing of a module: it has to take one tensor, with an example that it takes "
            "without preprocessing: bnfold.fold(module, (example,), preprocessing=…)"
        )
    if options.inplace:
        raise UsageError("preprocessing: a module gets it in a copy; leave out inplace")
    ((_, wanted),) = preprocessing
    if options.as_eval and model.training:
        model = copied(model).eval()
    made, picture, perm = behind(model, args[0], wanted, reorder)
    options = replace(
        options,
        args=(picture,),
        dynamic_shapes=picture_shapes(options.dynamic_shapes, perm),
        keep=tuple(f"network.{name}" for name in options.keep),
    )
    return made, options, ()


def original_behind(
    model: Any, options: ModuleOptions, settings: Settings
) -> tuple[Any, ModuleOptions, Settings]:
    """A module behind preprocessing as it is defined, to be compared with; the rest without it.

    Raises `UsageError` as `behind_module` does, and for preprocessing of a program or a file.
    """
    made, changed, left = behind_module(model, options, settings.preprocessing, reorder=False)
    if left:
        raise UsageError("preprocessing: this is for modules and models of ONNX; leave it out")
    return made, changed, replace(settings, preprocessing=())
