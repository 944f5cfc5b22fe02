"""Bugs in the proof by relation: `_relation`. What is another function is proved to be the same."""

from __future__ import annotations

from .planting import Mutant

MUTANTS = (
    Mutant(
        "only the largest weights of a row are compared",
        "_relation/solving.py",
        "over = ~(diff <= away + off)  # What is not a number is no rounding.",
        "over = ~(diff <= away + off) & (np.abs(one) >= np.sort(np.abs(one), axis=1)[:, -1:])",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "a weight that is not a number is laid to rounding",
        "_relation/solving.py",
        "beyond = ~(far <= away[wrong] + np.abs(found)[:, None] * off[wrong])",
        "beyond = far > away[wrong] + np.abs(found)[:, None] * off[wrong]",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "rounding explains a hundred units in the last place",
        "_relation/linear.py",
        "        error=weight.unit / 2,",
        "        error=weight.unit * 50,",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "what is left of a relation at an output does not matter",
        "_relation/matching.py",
        "        elif not related.is_identity:",
        "        elif False:",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "a shift goes through zero padding as if there were none",
        "_relation/linear.py",
        "        if linear.is_padded:",
        "        if False:",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "a scale of any sign passes a MaxPool",
        "_relation/windows.py",
        "    if axes is None or rank is None or not np.all(one.scale > 0):\n        return None\n"
        "    if not (is_off(one.scale, rank, axes) and is_off(one.shift, rank, axes)):\n"
        "        return None\n    return [",
        "    if axes is None or rank is None:\n        return None\n"
        "    if not (is_off(one.scale, rank, axes) and is_off(one.shift, rank, axes)):\n"
        "        return None\n    return [",
        "tests/relation/test_laws.py",
    ),
    Mutant(
        "a mean that counts padding takes a shift along",
        "_relation/windows.py",
        'if one.shift.any() and given.get("count_include_pad", 0) and not plain:',
        "if False:",
        "tests/relation/test_laws.py",
    ),
    Mutant(
        "two draws of random numbers are one",
        "_relation/matching.py",
        "candidates = [] if self.is_first else [c for c in candidates if not c.is_used]",
        "pass",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "a channel that nothing reads refutes",
        "_relation/proof.py",
        "return problem.base is None or is_read(",
        "return True or is_read(",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "what nobody knows to show refutes",
        "_relation/proof.py",
        "if not problem.is_sure or problem.units",
        "if problem.units",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "weights of a sum of branches are compared one branch at a time",
        "_relation/solving.py",
        "                total[:, :, at] += weights",
        "                total[:, :, at] = weights",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "the scale between two layers in series is left out",
        "_relation/series.py",
        "gain = factor if outer.gain is None else factor * outer.gain",
        "gain = np.ones_like(factor)",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "the operands of every operator may change places",
        "_relation/walk.py",
        "        if type_of(node) in _COMMUTATIVE:",
        "        if True:",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "a body may put out anything",
        "_relation/walk.py",
        '                    self.found.require_same(f"{value.name} of {body.path}", one, other)',
        "                    pass",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "a default value that a caller may leave is not compared",
        "_relation/proof.py",
        "if _default(one, graphs[0], a.name) != _default(other, graphs[1], b.name):",
        "if False:",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "an input of another type is the same",
        "_relation/proof.py",
        "        if not _is_alike(a, b, exact):",
        "        if False:",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "the smallest numbers of half precision have its usual unit",
        "_relation/relations.py",
        "_SMALLEST = {2.0**-10: 2.0**-24}",
        "_SMALLEST: dict[float, float] = {}",
        "tests/relation/test_proof.py",
    ),
    Mutant(
        "a channel that reads nothing has a relation",
        "_relation/matching.py",
        "    if not constant.any():",
        "    if True:",
        "tests/relation/test_drawn.py",
    ),
    Mutant(
        "the range of an axis is told alike whether or not its size is known",
        "_relation/places.py",
        'told[axis] = ("as written", min(end, _LAST), start, step)',
        'told[axis] = ("numbers", 1, 0, step)',
        "tests/relation/test_places.py",
    ),
    Mutant(
        "two rearrangements of one rank are one",
        "_relation/places.py",
        '    return "rearranged", tuple(told)',
        '    return "rearranged", len(told)',
        "tests/relation/test_places.py",
    ),
    Mutant(
        "reductions over any axes are one",
        "_relation/places.py",
        "    return node.op_type, told, bool(",
        "    return node.op_type, bool(",
        "tests/relation/test_places.py",
    ),
    Mutant(
        "what the first file does not have is no problem where something depends on it",
        "_relation/matching.py",
        'self.problems.append(loose or Problem("structure", what, "it is another value"))',
        "pass",
        "tests/relation/test_places.py",
    ),
    Mutant(
        "attributes of operators do not tell them apart",
        "_relation/table.py",
        "tuple(sorted(given.items())), tuple(inputs)",
        "(), tuple(inputs)",
        "tests/relation/test_proof.py",
    ),
)
