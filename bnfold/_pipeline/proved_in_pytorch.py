"""The proof from the weights within a verdict on two models of PyTorch.

It is asked where a run leaves the verdict open: outputs that are integers, that are the same for
all weights, or behind which errors hide. Where a program puts out integers and booleans alone, a
run does not pass without it. The proof takes an export of each module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn
from torch.export import ExportedProgram

from bnfold._aten.proof import prove_programs
from bnfold._errors import UsageError
from bnfold._judge import by_proof
from bnfold._judge.normal_form import Folded, narrow_type
from bnfold._judge.settings import Settings
from bnfold._judge.verdict import EndToEnd, overall
from bnfold._relation.proof import Proof
from bnfold._run.bounds import UNBOUNDED
from bnfold._run.torch_model import one_thread
from bnfold._torch.module.copying import copied
from bnfold._torch.module.fold import Example
from bnfold._torch.program.dialects import in_aten
from bnfold._torch.read.export import export


def settled_by_proof(
    result: EndToEnd, original: Folded, folded: Folded, example: Example | None
) -> EndToEnd:
    """The verdict on two models after a run, and after their proof where the run leaves it open.

    What is proved passes, unless numbers were seen to differ; what is refuted fails. In types of
    few digits an error of some % may be what rounding explains. There it counts only what is
    proved with nothing laid to their rounding: where both hold the same such numbers.

    Integers that are the same do not say that numbers ahead of them are: an error of 1 % in each
    channel may show, and one in a channel not. Two modules are compared ahead of them besides.
    """
    modules = isinstance(original, nn.Module) and isinstance(folded, nn.Module)
    coarse = not modules and all(each.tolerance == 0 for each in result.checks)
    if result.status == "pass" and result.checks and coarse:
        note = "outputs that no rounding moves, such as integers and booleans, hide small errors"
        result = replace(result, status="inconclusive", notes=(*result.notes, note))
    if result.status != "inconclusive" or result.divergence is not None:
        return result
    is_narrow = narrow_type(original, folded) is not None
    proof = _proof_of(original, folded, example, is_narrow)
    if is_narrow and not by_proof.is_proved(proof):
        return result
    if by_proof.is_proved(proof) and result.checks:
        checks = tuple(by_proof.judged(result.checks, proof))
        return replace(result, status=overall(checks), checks=checks, proof=proof)
    return by_proof.settled(result, proof, Settings(result.seed))


def _proof_of(original: Folded, folded: Folded, example: Example | None, is_narrow: bool) -> Proof:
    """What the weights prove. The programs of two modules are made on the same example."""
    try:
        pair = [program_to_prove(model, example) for model in (original, folded)]
    except UsageError as error:
        return Proof("not proved", "", str(error))
    first, second = pair
    size = sum(tensor.nbytes for each in pair for tensor in each.state_dict.values())

    def prove(watch: Callable[[], None]) -> Proof:
        return prove_programs(first, second, watch, halves_are_exact=is_narrow)

    with one_thread():
        return by_proof.within(prove, size, UNBOUNDED)


def program_to_prove(model: Folded, example: Example | None) -> ExportedProgram:
    """The program of a model. Raises `UsageError` for a module that cannot be exported, such as one
    whose code reads numbers out of tensors.
    """
    if not isinstance(model, nn.Module):
        return in_aten(model)
    if example is None:
        raise UsageError("a module takes example inputs to be proved")
    subject = copied(model, shared=True)
    return export(subject, example.args, example.kwargs, example.dynamic_shapes)
