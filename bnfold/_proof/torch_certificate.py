"""Certificates of the folds and merges in a PyTorch program.

PyTorch runs the old and the new operators of each step in float64. The numbers z are drawn. The old
operators read ``F(z)`` and the new ones read ``G(z)``; F and G are the maps that were carried past
the tensor. Merged weights are not rounded yet, so the outputs may differ only by what float64 may
lose. New parameters of folds are rounded once. Nothing is shared with the code that folds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnfold._core.affine import AffineMap
from bnfold._core.index_maps import Map
from bnfold._errors import first_line
from bnfold._onnx.write.applied import Factor, Related
from bnfold._proof.evidence import Certificate, Mismatch, Obstacle, Unchecked
from bnfold._proof.full_rank_maps import composed, equalities, values_around
from bnfold._proof.local_probe import ROUNDINGS
from bnfold._proof.torch_evaluation import BoundedValue, EvaluatedProgram
from bnfold._proof.torch_narrowing import Narrowing
from bnfold._torch.program.applied import Applied, AppliedStep

_ARITHMETIC = 2.0**-40
_LARGEST = 1 << 24
_Drawn = tuple[dict[str, BoundedValue], dict[str, BoundedValue]]
"""Values of the tensors that the old operators read, and of those for the new ones, by name."""


def certify_program(applied: Sequence[Applied]) -> tuple[Certificate, ...]:
    """One certificate for each step. A wrong step has a ``problem``; it raises no error."""
    return tuple(found for each in applied for found in _CheckedProgram(each).certificates())


class _CheckedProgram:
    """A program before and after some steps, ready to be checked."""

    def __init__(self, applied: Applied) -> None:
        self._applied = applied
        self._before = EvaluatedProgram(applied.before, applied.exact)
        self._after = EvaluatedProgram(applied.after, applied.exact_after)
        self._stood = {new: old for old, new in applied.standing.items()}
        self._related = {
            name: Related(_steps(relation.old), _steps(relation.new))
            for name, relation in applied.related.items()
        }
        self._narrowing = Narrowing(
            self._before, self._after, applied.steps, applied.standing, self._related
        )

    def certificates(self) -> list[Certificate]:
        """One certificate for each step."""
        found = []
        for step in self._applied.steps:
            given = "", step.into, step.maps
            try:
                off = self._check(step)
            except Mismatch as mismatch:
                found.append(Certificate(*given, math.inf, str(mismatch), step.law))
                continue
            if isinstance(off, Unchecked):
                layers = self._resting(step)
                unchecked = Certificate(*given, 0.0, "", step.law, None, off, layers)
                found.append(unchecked)
            else:
                found.append(Certificate(*given, off, law=step.law))
        return found

    def _check(self, step: AppliedStep) -> float | Unchecked:
        """How far the new operators are from the old ones, in units of what rounding explains.

        What reaches no output may go without anything in its place.
        """
        if not any(name in self._before.reaching for name in step.outputs):
            return 0.0
        for name in step.nodes if step.law == "cross" else ():
            self._narrowing.require(name)
        old, new = self._around(step)
        found = self._compared(step, old, new, ())
        if isinstance(found, Unchecked) or step.law != "cross":
            return found
        # The new operators tell the numbers: a relu6 holds none, and a fold makes it a hardtanh.
        numbers = self._after.numbers(
            self._after.between(new, [self._applied.standing[name] for name in old])
        )
        if not numbers:
            return found
        near = self._compared(step, old, new, numbers)
        return found if isinstance(near, Unchecked) else max(found, near)

    def _compared(
        self, step: AppliedStep, old: Sequence[str], new: Sequence[str], numbers: Sequence[float]
    ) -> float | Unchecked:
        """How far the new operators are from the old ones on drawn values.

        If ``numbers`` are given, the new operators read values near them.
        """
        drawn = self._drawn(old, numbers)
        if isinstance(drawn, Unchecked):
            return drawn
        was, now = drawn
        made = self._after.between(new, now)
        eps = self._after.epsilon(made) if step.law != "merge" else 0.0
        unit = ROUNDINGS * eps / 2 * max(1, len(made)) + _ARITHMETIC
        worst: float | None = None
        for name, other in zip(step.outputs, new, strict=True):
            try:
                wanted, found = self._before.run(name, was), self._after.run(other, now)
            except (Mismatch, MemoryError):
                raise
            except Exception as error:  # An operator may raise anything on drawn numbers.
                return Unchecked(Obstacle.DOES_NOT_RUN, first_line(error))
            off = self._distance(step, name, wanted, found, unit)
            if off is not None:
                worst = max(worst or 0.0, off)
        return Unchecked(Obstacle.NOT_FINITE, step.into) if worst is None else worst

    def _around(self, step: AppliedStep) -> tuple[list[str], list[str]]:
        """The tensors that the old operators read, and the new tensors for their outputs.

        Raises:
            Mismatch: nothing stands for an output.
        """
        standing = self._applied.standing
        lost = [name for name in step.outputs if name not in standing]
        if lost:
            raise Mismatch(f"nothing stands for {', '.join(lost)}")
        new = [standing[name] for name in step.outputs]
        if step.nodes:
            return self._before.read(step.nodes), new
        ends = {name for name in self._stood if name not in new}
        made = self._after.between(new, ends)
        return [self._stood[name] for name in self._after.read(made)], new

    def _drawn(
        self, names: Iterable[str], numbers: Sequence[float]
    ) -> tuple[dict[str, BoundedValue], dict[str, BoundedValue]] | Unchecked:
        """Drawn values of the tensors that the old operators read, and of those for the new ones.

        If ``numbers`` are given, the new operators read values near them. Returns `Unchecked` where
        no values can be drawn for a tensor.
        """
        generator = np.random.default_rng(0)
        was, now = dict[str, BoundedValue](), dict[str, BoundedValue]()
        for name in names:
            other = self._applied.standing.get(name)
            if other is None:
                raise Mismatch(f"nothing stands for {name}")
            example = self._before.nodes[name].meta.get("val")
            if not isinstance(example, Tensor):
                if (size := _size(example)) is None:
                    return Unchecked(Obstacle.NOT_DRAWABLE, name)
                was[name] = now[other] = BoundedValue(size, size)
                continue
            shape = [_size(n) for n in example.shape]
            sizes = [n for n in shape if n is not None]
            if len(sizes) < len(shape):
                return Unchecked(Obstacle.SHAPE_UNKNOWN, name)
            if math.prod(sizes) > _LARGEST:
                return Unchecked(Obstacle.TOO_LARGE, name)
            if not example.is_floating_point():
                zeros = torch.zeros(sizes, dtype=example.dtype)
                was[name] = now[other] = BoundedValue(zeros, zeros)
                continue
            z = generator.normal(size=sizes)
            read = written = z
            if (relation := self._related.get(name)) is not None:
                first, second = composed(relation.old, z.ndim), composed(relation.new, z.ndim)
                z = values_around(second, z, numbers, bool(numbers), generator)
                free = generator.normal(size=sizes)
                read = np.where(first.unknown, free, first.of(z))
                written = second.of(z)
            was[name], now[other] = _bounded(read), _bounded(written)
        return was, now

    def _distance(
        self, step: AppliedStep, name: str, wanted: BoundedValue, made: BoundedValue, unit: float
    ) -> float | None:
        """How far a new tensor is from the wanted one, in units of what rounding explains.

        An operator may give several tensors; then the largest distance counts. ``unit`` is the
        rounding of one term. Returns None where no value is known.
        """
        if isinstance(wanted.value, tuple | list):
            parts = zip(map(BoundedValue, *wanted), map(BoundedValue, *made), strict=True)
            offs = [self._distance(step, name, *pair, unit) for pair in parts]
            return max((off for off in offs if off is not None), default=None)
        if not isinstance(wanted.value, Tensor):
            return 0.0 if wanted.value == made.value else math.inf
        if wanted.value.shape != made.value.shape:
            sizes = f"{tuple(made.value.shape)} instead of {tuple(wanted.value.shape)}"
            raise Mismatch(f"{name} would have the shape {sizes}")
        if not wanted.value.is_floating_point():
            return 0.0 if torch.equal(wanted.value, made.value) else math.inf
        one, other = (_array(each.value) for each in (wanted, made))
        bounds = [np.broadcast_to(_array(each.bound), one.shape) for each in (wanted, made)]
        known = np.isfinite(one) & np.isfinite(bounds[0])
        if not known.any():
            return None
        worst = 0.0
        for equality in equalities(self._related.get(name), one.ndim):
            if bool((equality.old.unknown & ~equality.exempt).any()):
                raise Mismatch(f"{name} depends on values that nothing is known of")
            off = np.abs(equality.old.of(one) - equality.new.of(other))
            second = bounds[1] * np.abs(equality.new.scale) + np.abs(equality.new.shift)
            first = bounds[0] * np.abs(equality.old.scale) + np.abs(equality.old.shift)
            limits = unit * second + _ARITHMETIC * first + np.finfo(np.float32).tiny
            told = np.where(equality.exempt | ~known, 0.0, off / limits)
            worst = max(worst, float(np.max(np.where(np.isnan(told), np.inf, told))))
        return worst

    def _resting(self, step: AppliedStep) -> frozenset[str]:
        """The layers whose folds rest on one step, by the names that `TorchModel` gives them.

        Two steps belong together where a map was carried past a tensor of both. The result has
        the layers of this step, of all that belong to it, of all that belong to one of those, and
        so on.
        """
        taken, names = [step], self._touched(step)
        others = list(self._applied.steps)
        while joined := [
            each
            for each in others
            if each not in taken and not names.isdisjoint(self._touched(each))
        ]:
            taken += joined
            names = names.union(*map(self._touched, joined))
        nodes = {name for each in taken for name in (*each.nodes, *each.outputs)}
        weights = set(self._before.weights(nodes))
        return frozenset(name.rpartition(".")[0] or name for name in weights)

    def _touched(self, step: AppliedStep) -> set[str]:
        """The tensors of a step that maps were carried past, by name."""
        read = self._before.read(step.nodes) if step.nodes else []
        return {name for name in (*read, *step.outputs) if name in self._related}


def _steps(maps: Iterable[Map]) -> tuple[Factor, ...]:
    return tuple(
        Factor(m.scale, m.shift, m.axis if isinstance(m, AffineMap) else None) for m in maps
    )


def _size(value: Any) -> int | None:
    """A size as a number. One that may vary counts as in the example; None if unknown."""
    if isinstance(value, int):
        return value
    hint = getattr(getattr(value, "node", None), "hint", None)
    return int(hint) if hint is not None else None


def _bounded(values: np.ndarray[Any, Any]) -> BoundedValue:
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float64)).reshape(values.shape)
    return BoundedValue(tensor, tensor.abs())


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array
