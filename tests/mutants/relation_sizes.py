"""Bugs in what the proof knows of sizes, and in what follows from them: `_relation`."""

from __future__ import annotations

from .planting import Mutant

_BRANCHES = "tests/relation/test_branches.py"
_LEARNED = "tests/relation/test_learned.py"
_EXTENTS = "tests/relation/test_extents.py"
_EDGES = "tests/relation/test_edges.py"
_GROWTH = "tests/relation/test_growth.py"
MUTANTS = (
    Mutant(
        "an If takes the other branch",
        "_relation/walk.py",
        'taken = "then_branch" if asked.values[0] else "else_branch"',
        'taken = "else_branch" if asked.values[0] else "then_branch"',
        _BRANCHES,
    ),
    Mutant(
        "an If is its first branch",
        "_relation/walk.py",
        "return one if one.terms[0].base == other.terms[0].base else None",
        "return one",
        _BRANCHES,
    ),
    Mutant(
        "what a body declares of its inputs is believed",
        "_relation/side.py",
        "believe_bodies=False",
        "believe_bodies=True",
        _BRANCHES,
    ),
    Mutant(
        "a size is true",
        "_relation/conditions.py",
        "    if not all(isinstance(value, int) for value in data.values):\n"
        "        return None  # A size may be 0.\n",
        "",
        _BRANCHES,
    ),
    Mutant(
        "a size that is not known to be a number is another one",
        "_relation/amounts.py",
        "return False if below and isinstance(size, Amount) and size.is_size else None",
        "return False",
        _BRANCHES,
    ),
    Mutant(
        "less is less or equal",
        "_relation/conditions.py",
        "one < other),",
        "one <= other),",
        _BRANCHES,
    ),
    Mutant(
        "a product that need not run tells how long rows are",
        "_relation/sizes.py",
        "if not (self.learns and self.is_certain) or",
        "if not self.learns or",
        _LEARNED,
    ),
    Mutant(
        "a product that need not run asks for rows",
        "_relation/sizes.py",
        "if self.learns and self.is_certain and len(held)",
        "if self.learns and len(held)",
        _LEARNED,
    ),
    Mutant(
        "a 0 in the target of a Reshape is a size",
        "_relation/sizes.py",
        "for name in self.doubted):",
        "for name in ()):",
        _LEARNED,
    ),
    Mutant(
        "sizes that may be 0 are divided by",
        "_relation/sizes.py",
        "if one != other and self.is_positive(other):",
        "if one != other:",
        _LEARNED,
    ),
    Mutant(
        "a tensor of another name has the same sizes",
        "_relation/sizes.py",
        'named(("size", *own, axis))',
        'named(("size", axis))',
        _LEARNED,
    ),
    Mutant(
        "parts along another axis are put together at once",
        "_relation/roots.py",
        "return chain[1] if chain is not None and chain[0] == axis else (part,)",
        "return chain[1] if chain is not None else (part,)",
        _LEARNED,
    ),
    Mutant(
        "parts of a scaled Concat lose the scale",
        "_relation/roots.py",
        "term = value.map if value is not None and value.is_base else None",
        "term = value.map if value is not None else None",
        _LEARNED,
    ),
    Mutant(
        "a Slice of a known axis takes all there is",
        "_relation/places.py",
        'WHOLE: Hashable = ("ranges", ())',
        'WHOLE: Hashable = ("ranges", ((1, ("as written", 2147483647, 0, 2)),))',
        _LEARNED,
    ),
    Mutant(
        "the last of uneven parts is as large as the others",
        "_relation/outlines.py",
        "told = [*[even] * (count - 1), size - even * (count - 1)]",
        "told = [even] * count",
        _EXTENTS,
    ),
    Mutant(
        "a Pad of chosen axes pads them in order",
        "_relation/extents.py",
        "chosen = len(node.input) > 3 and node.input[3]",
        "chosen = False",
        _EXTENTS,
    ),
    Mutant(
        "a kernel reaches one place too far",
        "_relation/extents.py",
        "spread[axis] * (width - 1)",
        "spread[axis] * width",
        _EXTENTS,
    ),
    Mutant(
        "SAME pads nothing",
        "_relation/extents.py",
        'fixed = given.get("auto_pad", b"NOTSET") == b"NOTSET" and steps[axis] == 1',
        "fixed = steps[axis] == 1",
        _EXTENTS,
    ),
    Mutant(
        "a recurrent operator has one direction",
        "_relation/extents.py",
        'ways = 2 if given.get("direction", b"forward") == b"bidirectional" else 1',
        "ways = 1",
        _EXTENTS,
    ),
    Mutant(
        "a size that is not known is as large as the other",
        "_relation/outlines.py",
        "one if one == other else None",
        "one",
        _LEARNED,
    ),
    Mutant(
        "an operator leaves something",
        "_relation/sizes.py",
        "(leaves or given or any(map(self.is_open, read)))",
        "(given or any(map(self.is_open, read)))",
        _EDGES,
    ),
    Mutant(
        "an operator that reads nothing puts out something",
        "_relation/sizes.py",
        "(leaves or given or any(map(self.is_open, read)))",
        "(leaves or given)",
        _EDGES,
    ),
    Mutant(
        "inference is believed of a size that may be 0",
        "_relation/integers.py",
        "return None if self.sizes.is_open(made) else made",
        "return made",
        _EDGES,
    ),
    Mutant(
        "a size that may be 0 is the target of a Reshape",
        "_relation/outlines.py",
        "(size.is_size and not held.sizes.is_open(size))",
        "size.is_size",
        _EDGES,
    ),
    Mutant(
        "all amounts that are too long have one name",
        "_relation/amounts.py",
        "hashlib.sha256(repr(values).encode())",
        "hashlib.sha256(kind.encode())",
        _GROWTH,
    ),
    Mutant(
        "an amount that is too long holds no name",
        "_relation/amounts.py",
        "part == name or part[0] == _HASHED or any",
        "part == name or any",
        _GROWTH,
    ),
    Mutant(
        "integers are cut where sizes are large alone",
        "_relation/amounts.py",
        "< 1 << bits // 2",
        "< 1 << bits",
        _EDGES,
    ),
    Mutant(
        "two outputs of one name are one",
        "_relation/proof.py",
        "        by_name = {}\n",
        "        pass\n",
        _EDGES,
    ),
    Mutant(
        "a default value tells sizes",
        "_onnx/read/shapes.py",
        "stored = [tensor for tensor in skeleton.graph.initializer if tensor.name not in given]",
        "stored = list(skeleton.graph.initializer)",
        _EDGES,
    ),
)
