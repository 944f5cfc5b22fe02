"""Fold a dozen architectures both ways: the module and then export it, or the exported module.

For each architecture the module is exported with its BatchNorms kept, and bnfold folds the file;
and bnfold folds the module, which is then exported the same way. Both must leave the same operators
and compute what the original computes. The table counts affine operators: BatchNormalizations, and
Mul, Add, Sub and Div by a constant::

    python benchmarks/architectures.py
    python benchmarks/architectures.py resnet unet

Needs bnfold to be installed, and torch. The architectures are those of the package networks, next
to this file.

Where a module's own code applies a map, as in ``x * self.gamma``, there is no submodule to replace,
and the file is folded further than the module. Such an architecture says which operators are left
and for which reason; nothing else may differ. The exit status is 1 if anything else does, or if a
fold does not verify.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import torch
from networks import ARCHITECTURES, exported, make

import bnfold

ARITHMETIC = ("Mul", "Add", "Sub", "Div")


def executed(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, set[str]]]:
    """The nodes that depend on an input of the model, each with those of its inputs that do."""
    varying = {value.name for value in model.graph.input}
    varying -= {weight.name for weight in model.graph.initializer}
    for node in model.graph.node:
        depends = varying & set(node.input)
        if depends:
            varying |= set(node.output)
            yield node, depends


def operators(model: onnx.ModelProto) -> Counter[str]:
    """How many operators of each type run at every call."""
    return Counter(node.op_type for node, _ in executed(model))


def affine_operators(model: onnx.ModelProto) -> int:
    """How many of them are a BatchNormalization or an operation with one constant."""
    return sum(
        node.op_type == "BatchNormalization"
        or (node.op_type in ARITHMETIC and len(set(node.input) - depends) == 1)
        for node, depends in executed(model)
    )


@dataclass(frozen=True)
class Outcome:
    """One architecture folded both ways; ``reasons`` are the codes in the plan for the module,
    where some are expected.
    """

    name: str
    original: onnx.ModelProto
    by_file: onnx.ModelProto
    by_module: onnx.ModelProto
    reasons: tuple[str, ...]
    verdicts: Mapping[str, str]
    seconds: float

    @property
    def left(self) -> dict[str, int]:
        """Operators that the module's fold leaves and the file's does not; less than 0 for the
        opposite.
        """
        file, module = operators(self.by_file), operators(self.by_module)
        return {op: module[op] - file[op] for op in file | module if module[op] != file[op]}

    @property
    def complaints(self) -> list[str]:
        """What is not as it must be."""
        architecture = ARCHITECTURES[self.name]
        found = [
            f"{self.name}: folding the {way} does not verify: {status}"
            for way, status in self.verdicts.items()
            if status != "pass"
        ]
        expected = dict(architecture.left)
        if self.left != expected:
            found.append(f"{self.name}: the module's fold leaves {self.left}, not {expected}")
        if expected and architecture.code not in self.reasons:
            found.append(f"{self.name}: the plan does not say {architecture.code} of any")
        return found


def both_ways(name: str) -> Outcome:
    """Fold one architecture both ways, and verify both."""
    start = time.perf_counter()
    module, inputs = make(name)
    original = exported(module, inputs)
    by_file = bnfold.fold(original)
    folded = bnfold.fold(module, (inputs,))
    verdicts = {
        "file": bnfold.verify(original, by_file).status,
        "module": bnfold.verify(module, folded, (inputs,)).status,
    }
    by_module = exported(folded, inputs)
    reasons: tuple[str, ...] = ()
    if ARCHITECTURES[name].code:
        reasons = tuple(kept.code for kept in bnfold.plan(module, (inputs,)).kept)
    seconds = time.perf_counter() - start
    return Outcome(name, original, by_file, by_module, reasons, verdicts, seconds)


def row(outcome: Outcome) -> str:
    """One line of the table."""
    counts = [
        affine_operators(model) for model in (outcome.original, outcome.by_file, outcome.by_module)
    ]
    equal = "yes" if not outcome.left else ARCHITECTURES[outcome.name].code or "NO"
    numbers = "".join(f"{count:>10}" for count in counts)
    verdicts = f"{outcome.verdicts['file']:>14}{outcome.verdicts['module']:>14}"
    return f"{outcome.name:<18}{numbers}{equal:>15}{verdicts}{outcome.seconds:>7.1f} s"


def main() -> None:
    """Print the table; exit with 1 if a pair differs or does not verify."""
    parser = argparse.ArgumentParser(description="Fold modules and their exports, and compare.")
    known = list(ARCHITECTURES)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(known)}")
    names: list[str] = parser.parse_args().names
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    torch.set_num_threads(1)  # These are too small for more, and threads wait for each other.
    print(
        f"{'affine operators':<18}{'original':>10}{'file':>10}{'module':>10}"
        f"{'same operators':>15}{'file verifies':>14}{'module':>14}"
    )
    complaints = []
    for name in names or known:
        outcome = both_ways(name)
        print(row(outcome), flush=True)
        complaints += outcome.complaints
    if complaints:
        sys.exit("\n".join(["", *complaints]))


if __name__ == "__main__":
    main()
