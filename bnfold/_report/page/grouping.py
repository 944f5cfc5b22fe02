"""Groups of operators that open and close: by the names of modules, and by the narrow places.

Where very many operators stand side by side in one group, those between two narrow places of the
network become a group without a name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bnfold._report.page.drawing import Folder

MOST = 40
"""So many operators and groups stand in one group, at most."""
_SMALLEST, _USUAL, _LARGEST = 10, 20, 30
"""How many of them are put into a group without a name."""


@dataclass
class Group:
    """A group; ``children`` are operators by number, and groups by ``~number``, in order."""

    name: str
    parent: int
    children: list[int] = field(default_factory=list)


def grouped(folders: Sequence[Folder], edges: Sequence[tuple[int, int]]) -> list[Group]:
    """The groups of some operators, the first of which holds all others."""
    groups = [Group("", -1)]
    known: dict[tuple[int, str], int] = {}
    for number, folder in enumerate(folders):
        at = 0
        for name in folder:
            if (at, name) not in known:
                known[at, name] = len(groups)
                groups[at].children.append(~len(groups))
                groups.append(Group(name, at))
            at = known[at, name]
        groups[at].children.append(number)
    _scatter(groups, len(folders), edges)
    _dissolve(groups)
    for at in range(len(groups)):
        _divide(groups, at, edges)
    return _without_empty(groups)


def parents(groups: Sequence[Group], count: int) -> list[int]:
    """By the number of an operator its group."""
    found = [0] * count
    for at, group in enumerate(groups):
        for child in group.children:
            if child >= 0:
                found[child] = at
    return found


def _scatter(groups: list[Group], count: int, edges: Sequence[tuple[int, int]]) -> None:
    """Dissolve groups whose members have little to do with each other.

    Names may tell only the type of an operator. Then few edges are inside: less than half as many
    as would link all members. Or data leave the group and come back into it.
    """
    owners = parents(groups, count)
    inside = [0] * len(groups)
    members: list[set[int]] = [set() for _ in groups]
    readers: list[list[int]] = [[] for _ in range(count)]
    for number in range(count):
        for at in _outwards(groups, owners[number]):
            members[at].add(number)
    for one, other in edges:
        readers[one].append(other)
        both = {*_outwards(groups, owners[one])} & {*_outwards(groups, owners[other])}
        for at in both:
            inside[at] += 1
    for at in range(len(groups) - 1, 0, -1):
        group = groups[at]
        if 2 * inside[at] >= len(members[at]) - 1 and not _comes_back(members[at], readers):
            continue
        around = groups[group.parent]
        around.children.remove(~at)
        around.children += group.children
        for child in group.children:
            if child < 0:
                groups[~child].parent = group.parent
        group.children = []
    first = [0] * len(groups)
    for at in range(len(groups) - 1, -1, -1):  # in the order of the data again
        group = groups[at]
        place = {child: child if child >= 0 else first[~child] for child in group.children}
        group.children.sort(key=place.__getitem__)
        first[at] = min(place.values(), default=0)


def _comes_back(members: set[int], readers: Sequence[Sequence[int]]) -> bool:
    """Whether data of some operators come back to them through others; each is behind its data."""
    last = max(members)
    outside = set[int]()
    for number in range(min(members), last):
        if number in outside or number in members:
            for reader in readers[number]:
                if reader not in members:
                    outside.add(reader)
                elif number in outside:
                    return True
    return False


def _outwards(groups: Sequence[Group], at: int) -> Iterator[int]:
    """A group and all around it, but for the outermost."""
    while at > 0:
        yield at
        at = groups[at].parent


def _dissolve(groups: list[Group]) -> None:
    """Put what is alone in a group into the group around it."""
    for at in range(len(groups) - 1, 0, -1):
        group = groups[at]
        if len(group.children) != 1:
            continue
        (child,) = group.children
        around = groups[group.parent]
        around.children[around.children.index(~at)] = child
        if child < 0:
            inner = groups[~child]
            inner.name, inner.parent = f"{group.name}/{inner.name}", group.parent
        group.children = []


def _divide(groups: list[Group], at: int, edges: Sequence[tuple[int, int]]) -> None:
    """Put the children of a group into groups without a name while there are too many."""
    while len(groups[at].children) > MOST:
        children = groups[at].children
        owner = dict(_members(groups, children))
        last = list(range(len(children)))  # by child the last that reads it
        for one, other in edges:
            if one in owner and other in owner:
                a, b = sorted((owner[one], owner[other]))
                last[a] = max(last[a], b)
        cuts = [0] * (len(children) + 1)
        for k, end in enumerate(last):
            for cut in (k + 1, end + 1):
                cuts[cut] += 1 if cut == k + 1 else -1
        for k in range(1, len(cuts)):
            cuts[k] += cuts[k - 1]
        made: list[int] = []
        begin = 0
        while len(children) - begin > _LARGEST:
            choices = range(begin + _SMALLEST, begin + _LARGEST + 1)
            end = min(choices, key=lambda k: (cuts[k], abs(k - begin - _USUAL)))
            made.append(_made(groups, at, children[begin:end]))
            begin = end
        made.append(_made(groups, at, children[begin:]))
        groups[at].children = made


def _made(groups: list[Group], parent: int, children: list[int]) -> int:
    """A new group without a name; an only child stays as it is."""
    if len(children) == 1:
        return children[0]
    number = len(groups)
    groups.append(Group("", parent, children))
    for child in children:
        if child < 0:
            groups[~child].parent = number
    return ~number


def _members(groups: Sequence[Group], children: Sequence[int]) -> Iterator[tuple[int, int]]:
    """By operator, at any depth, the place among the children of the one that holds it."""
    for place, child in enumerate(children):
        waiting = [child]
        while waiting:
            one = waiting.pop()
            if one >= 0:
                yield one, place
            else:
                waiting.extend(groups[~one].children)


def _without_empty(groups: Sequence[Group]) -> list[Group]:
    """The groups that hold anything, with new numbers."""
    number = {at: k for k, at in enumerate(at for at, g in enumerate(groups) if g.children)}
    number.setdefault(0, 0)
    return [
        Group(
            groups[at].name,
            number.get(groups[at].parent, -1) if at else -1,
            [child if child >= 0 else ~number[~child] for child in groups[at].children],
        )
        for at in number
    ]


def between(
    groups: Sequence[Group], owners: Sequence[int], edges: Sequence[tuple[int, int]]
) -> dict[int, list[tuple[int, int]]]:
    """By group the edges between its children, each once: an edge is in the innermost group that
    holds both of its ends.
    """
    depth = [0] * len(groups)
    waiting = [0]
    for at in waiting:
        for child in groups[at].children:
            if child < 0:
                depth[~child] = depth[at] + 1
                waiting.append(~child)
    found = defaultdict[int, dict[tuple[int, int], None]](dict)
    for one, other in edges:
        a, b = one, other
        ga, gb = owners[one], owners[other]
        while depth[ga] > depth[gb]:
            a, ga = ~ga, groups[ga].parent
        while depth[gb] > depth[ga]:
            b, gb = ~gb, groups[gb].parent
        while ga != gb:
            a, ga = ~ga, groups[ga].parent
            b, gb = ~gb, groups[gb].parent
        if a != b:
            found[ga][a, b] = None
    return {at: list(pairs) for at, pairs in found.items()}
