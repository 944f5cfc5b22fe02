"""Bugs to plant in the source, one at a time, that the tests have to notice.

``python -m tests.mutants`` plants all of them, ``python -m tests.mutants NAME…`` some. They lie in
one module for each room of the package, or for two parts of a large one.
"""

from __future__ import annotations

from . import (
    aten,
    command,
    core_laws,
    core_operators,
    judge,
    onnx_files,
    onnx_front,
    onnx_graphs,
    onnx_operators,
    plan,
    proof,
    registry,
    relation,
    relation_forms,
    relation_numbers,
    relation_sizes,
    run,
    torch_module,
    torch_program,
)

MUTANTS = (
    *core_laws.MUTANTS,
    *core_operators.MUTANTS,
    *plan.MUTANTS,
    *onnx_operators.MUTANTS,
    *onnx_graphs.MUTANTS,
    *onnx_files.MUTANTS,
    *onnx_front.MUTANTS,
    *torch_program.MUTANTS,
    *torch_module.MUTANTS,
    *run.MUTANTS,
    *proof.MUTANTS,
    *relation.MUTANTS,
    *relation_forms.MUTANTS,
    *relation_numbers.MUTANTS,
    *relation_sizes.MUTANTS,
    *aten.MUTANTS,
    *judge.MUTANTS,
    *command.MUTANTS,
    *registry.MUTANTS,
)
