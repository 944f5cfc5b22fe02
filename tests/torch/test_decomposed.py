"""Programs after ``run_decompositions``: other operators for the same function, the same folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.export import ExportedProgram  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import bnfold  # noqa: E402

from ..cli.command import bnfold as command  # noqa: E402
from ..searches import ONCE  # noqa: E402
from . import test_merge_drawn, test_random_modules  # noqa: E402
from .folding import rand, ready  # noqa: E402
from .merging import Net, exported, ops, planned_and_folded, same  # noqa: E402

aten = torch.ops.aten
NORM = "_native_batch_norm_legit_no_training"
AFFINE = ("batch_norm", NORM, "mul", "add", "sub", "div", "rsub", "mul_", "add_", "sub_", "div_")


def varying(program: ExportedProgram, inputs: int | None = None) -> list[str]:
    """The operators that depend on the inputs of a program, or those with some number of inputs
    that do.
    """
    given = set(program.graph_signature.user_inputs)
    found = []
    for node in program.graph.nodes:
        read = [source.name for source in node.all_input_nodes if source.name in given]
        if node.name in given or not read:
            continue
        given.add(node.name)
        if getattr(node.target, "namespace", "") == "aten" and inputs in (None, len(read)):
            found.append(str(node.target.__name__).partition(".")[0])
    return found


def affine(program: ExportedProgram) -> int:
    """How many maps a program has."""
    counted = Counter(varying(program, 1))
    return sum(counted[kind] for kind in AFFINE)


def fold(program: ExportedProgram, x: Tensor, within: float = 1e-10) -> ExportedProgram:
    """Fold; PyTorch in float64 is the oracle, and all certificates hold."""
    _, folded = planned_and_folded(program)
    same(program, folded, x, within)
    assert set(ops(folded)) <= {*ops(program), "mul", "add", "addmm"}  # Its own set of operators.
    assert bnfold.plan(folded).folds == ()
    return folded


def decomposed(module: nn.Module, x: Tensor, table: Any = None, **options: Any) -> ExportedProgram:
    program = exported(module, x, **options)
    return program.run_decompositions() if table is None else program.run_decompositions(table)


C, L = 4, 4  # Sizes that agree by accident.
IMAGE, SEQUENCE, ROWS = (4, C, L, L), (4, C, L), (4, C)
Layers = Callable[[], nn.Module]


def behind(layer: nn.Module, norm: nn.Module, op: Callable[[Tensor], Any] = lambda y: y) -> Net:
    return Net(lambda m, x: m.norm(op(m.layer(x))), layer=layer, norm=norm)


def ahead(layer: nn.Module, norm: nn.Module, op: Callable[[Tensor], Any] = lambda y: y) -> Net:
    return Net(lambda m, x: m.layer(op(m.norm(x))), layer=layer, norm=norm)


FOLDED: dict[str, tuple[Layers, tuple[int, ...]]] = {
    "conv": (lambda: behind(nn.Conv2d(C, C, 3, bias=False), nn.BatchNorm2d(C)), IMAGE),
    "1d": (lambda: behind(nn.Conv1d(C, 6, 3, groups=2), nn.BatchNorm1d(6)), SEQUENCE),
    "3d": (lambda: behind(nn.Conv3d(C, C, 1), nn.BatchNorm3d(C)), (2, C, L, L, L)),
    "strided": (
        lambda: behind(nn.Conv2d(C, 8, 3, 2, 1, groups=4), nn.BatchNorm2d(8, affine=False)),
        IMAGE,
    ),
    "same": (lambda: behind(nn.Conv2d(C, C, 2, padding="same"), nn.BatchNorm2d(C)), IMAGE),
    "transposed": (
        lambda: behind(nn.ConvTranspose2d(C, 6, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(6)),
        IMAGE,
    ),
    "square transposed": (
        lambda: behind(nn.ConvTranspose2d(C, C, 3, bias=False), nn.BatchNorm2d(C)),
        IMAGE,
    ),
    "ahead of a conv": (
        lambda: ahead(nn.Conv2d(C, C, 3, groups=2, bias=False), nn.BatchNorm2d(C)),
        IMAGE,
    ),
    "ahead of a transposed": (
        lambda: ahead(nn.ConvTranspose1d(C, C, 1, groups=2), nn.BatchNorm1d(C)),
        SEQUENCE,
    ),
    "linear": (lambda: behind(nn.Linear(C, C), nn.BatchNorm1d(C)), ROWS),
    "no bias": (lambda: behind(nn.Linear(C, 5, bias=False), nn.BatchNorm1d(5)), ROWS),
    "ahead of a linear": (lambda: ahead(nn.Linear(C, C), nn.BatchNorm1d(C)), ROWS),
    "linear of rank 3": (
        lambda: behind(nn.Linear(L, 6), nn.BatchNorm1d(6), lambda y: y.transpose(1, 2)),
        SEQUENCE,
    ),
    "layer scale": (
        lambda: Net(lambda m, x: m.layer(x) * m.gamma, layer=nn.Linear(L, L), gamma=torch.ones(L)),
        SEQUENCE,
    ),
    "layer norm": (
        lambda: Net(
            lambda m, x: m.layer(x) * m.gamma - 1, layer=nn.LayerNorm(L), gamma=torch.ones(L)
        ),
        SEQUENCE,
    ),
    "group norm": (lambda: behind(nn.GroupNorm(2, C), nn.BatchNorm2d(C)), IMAGE),
    "instance norm": (
        lambda: behind(nn.InstanceNorm2d(C, affine=True), nn.BatchNorm2d(C)),
        IMAGE,
    ),
    "tracked instance norm": (
        lambda: behind(nn.Conv2d(C, C, 1), nn.InstanceNorm2d(C, True, track_running_stats=True)),
        (1, C, L, L),
    ),
    "numbers": (lambda: behind(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), lambda y: 2 - y / 3), IMAGE),
    "average pool": (
        lambda: behind(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), lambda y: F.avg_pool2d(y, 2)),
        IMAGE,
    ),
    "pools": (
        lambda: behind(
            nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), lambda y: F.adaptive_avg_pool2d(y, (2, 3))
        ),
        IMAGE,
    ),
    "mean": (
        lambda: behind(nn.Conv2d(C, C, 1), nn.BatchNorm1d(C), lambda y: y.mean((2, 3))),
        IMAGE,
    ),
    "cut and joined": (
        lambda: behind(
            nn.Conv2d(C, C, 1),
            nn.BatchNorm2d(C),
            lambda y: torch.cat([*y.split((1, 3), 1)][::-1], 1)[:, :, 1:],
        ),
        IMAGE,
    ),
    "flattened": (
        lambda: Net(
            lambda m, x: m.last(m.norm(x).flatten(1)),
            norm=nn.BatchNorm2d(C),
            last=nn.Linear(64, 3),
        ),
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_no_map_is_left(name):
    layers, shape = FOLDED[name]
    module, x = ready(layers()), rand(*shape)
    program = decomposed(module, x)
    assert affine(program)
    assert affine(fold(program, x)) == 0


@pytest.mark.parametrize("table", [None, {}])
def test_a_network(table):
    """Both tables; the parameters keep their names, and the command says what it does."""
    module = ready(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 5),
            nn.BatchNorm1d(5),
        ),
        torch.float32,
    )
    x = rand(2, 3, 8, 8, dtype=torch.float32)
    program = decomposed(module, x, table)
    folded = fold(program, x, 1e-6)
    assert NORM not in ops(folded)
    assert {"0.weight", "5.weight", "5.bias"} <= set(folded.state_dict)
    assert folded.state_dict["5.weight"].shape == (5, 36)
    assert bnfold.verify(program, folded).status == "pass"


def test_the_command(tmp_path):
    module = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.float32)
    path = tmp_path / "model.pt2"
    torch.export.save(decomposed(module, rand(1, 3, 5, 5, dtype=torch.float32)), path)
    done = command(path, "-o", tmp_path / "out.pt2")
    assert done.code == 0
    assert "verification: pass" in done.out
    assert NORM not in ops(torch.export.load(tmp_path / "out.pt2"))


def test_a_norm_that_stays_with_new_numbers():
    """What enters from outside is scaled and normed: one norm is left, of its own kind."""
    net = Net(
        lambda m, x: m.norm(x.sin() * m.gamma) + x,
        norm=nn.BatchNorm2d(C),
        gamma=torch.ones(C, 1, 1),
    )
    module, x = ready(net), rand(*IMAGE)
    folded = fold(decomposed(module, x), x)
    assert Counter(varying(folded))[NORM] == 1
    assert "mul" not in varying(folded)


class Called(nn.Module):
    """One operator as it is called by programs that others have lowered."""

    def __init__(self, code: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3), nn.BatchNorm2d(C)
        self.matrix, self.row = nn.Parameter(torch.ones(C, C)), nn.Parameter(torch.ones(C))
        self.batch = nn.Parameter(torch.ones(4, C, C))
        self.register_buffer("nan", torch.full((C,), torch.nan))
        self.code = code

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)

    @property
    def statistics(self) -> tuple[Any, ...]:
        norm = self.norm
        return norm.weight, norm.bias, norm.running_mean, norm.running_var


def native(m: Called, y: Tensor) -> Any:
    return aten.native_batch_norm(y, *m.statistics, False, 0.1, 1e-5)


def test_native_batch_norm_in_eval():
    module, x = ready(Called(lambda m, x: native(m, m.conv(x))[0].relu())), rand(*IMAGE)
    assert ops(fold(exported(module, x), x)) == ["conv2d", "relu"]


@pytest.mark.parametrize("read", ["mean", "twice", "training"])
def test_a_norm_whose_statistics_are_read_stays_with_a_reason(read):
    def code(m: Called, x: Tensor) -> Any:
        y = m.conv(x)
        if read == "training":
            return aten.native_batch_norm(y, *m.statistics[:2], None, None, True, 0.1, 1e-5)[0]
        found = native(m, y)
        return (found[0], found[1]) if read == "mean" else (found[0], aten.relu(found[2]))

    module, x = ready(Called(code)), rand(*IMAGE)
    program = exported(module, x)
    plan, folded = planned_and_folded(program)
    (kept,) = plan.kept
    assert kept.code == ("training-mode-untracked" if read == "training" else "training-mode")
    assert "native_batch_norm" in ops(folded)


def test_a_layer_norm_whose_mean_is_read_takes_maps_in():
    """The mean does not depend on γ and β."""

    def code(m: Called, x: Tensor) -> Any:
        y, mean, _ = aten.native_layer_norm(x, [L], m.row, None, 1e-5)
        return y * m.matrix[0], mean

    module, x = ready(Called(code)), rand(*IMAGE)
    folded = fold(exported(module, x), x)
    assert affine(folded) == 0
    assert "native_layer_norm" in ops(folded)


PRODUCTS: dict[str, tuple[Callable[[Called, Tensor], Any], int]] = {
    "mm": (lambda m, x: aten.mm(x, m.matrix) * m.row + m.row, 0),
    "mm of a transposed": (lambda m, x: aten.mm(x, m.matrix.t()) * m.row, 0),
    "scales of the other axis": (lambda m, x: aten.mm(x, m.matrix) * m.row[:, None], 1),
    "weight on the left": (lambda m, x: aten.mm(m.matrix, x) * m.row[:, None], 0),
    "weight on the left, other axis": (lambda m, x: aten.mm(m.matrix, x) * m.row, 1),
    "ahead of mm": (lambda m, x: aten.mm(x.sin() * m.row, m.matrix), 0),
    "ahead of mm, other axis": (lambda m, x: aten.mm(x.sin() * m.row[:, None], m.matrix), 1),
    "addmm": (lambda m, x: aten.addmm(m.row, x, m.matrix.t(), beta=0.5, alpha=3) * m.row - 1, 0),
    "ahead of addmm": (
        lambda m, x: aten.addmm(m.row, x * m.row + m.row, m.matrix, beta=0.5, alpha=-3),
        0,
    ),
    "bias of rows": (lambda m, x: aten.addmm(m.matrix, x, m.matrix) * m.row + m.row, 0),
    "addmm, weight on the left": (
        lambda m, x: aten.addmm(m.row, m.matrix, x, alpha=2) * m.row[:, None] + 1,
        0,
    ),
    "addmm, other axis": (lambda m, x: aten.addmm(m.row, x, m.matrix) * m.row[:, None], 1),
    "addmm of data": (lambda m, x: aten.addmm(x, x, m.matrix) * m.row, 1),
    "bias that does not count": (
        lambda m, x: aten.addmm(m.nan, x, m.matrix, beta=0) * m.row + m.row,
        0,
    ),
    "a weight used twice": (
        lambda m, x: aten.mm(aten.mm(x, m.matrix).sin(), m.matrix) * m.row + m.row,
        0,
    ),
    "a transposed weight used twice": (
        lambda m, x: aten.mm(aten.mm(x, m.matrix.t()).sin(), m.matrix.t()) * m.row + m.row,
        0,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    code, left = PRODUCTS[name]
    module, x = ready(Called(code)), rand(C, C)
    assert affine(fold(exported(module, x), x)) == left


@pytest.mark.parametrize(
    ("code", "left"),
    [
        (lambda m, x: aten.bmm(x, m.batch) * m.row, 0),
        (lambda m, x: aten.bmm(x, m.batch) * m.row[:, None], 1),
        (lambda m, x: aten.bmm(x, m.batch) * m.row[:, None, None], 0),
        (lambda m, x: aten.bmm(m.batch, x) * m.row[:, None], 0),
        (lambda m, x: torch.matmul(x, m.matrix) * m.row, 0),
        (lambda m, x: torch.matmul(m.matrix, x) * m.row[:, None], 0),
    ],
)
def test_products_of_batches(code, left):
    module, x = ready(Called(code)), rand(4, C, C)
    assert affine(fold(exported(module, x), x)) == left


def test_a_module_whose_own_code_multiplies_matrices_is_left():
    module = ready(Called(lambda m, x: aten.addmm(m.row, x, m.matrix) * m.row))
    assert bnfold.plan(module, (rand(C, C),)).folds == ()


MERGED: dict[str, tuple[Layers, tuple[int, ...], list[str]]] = {
    "branches": (
        lambda: Net(
            lambda m, x: m.bn(m.a(x)) + m.b(x) + m.own(x),
            a=nn.Conv2d(C, C, 3, padding=1),
            b=nn.Conv2d(C, C, 1),
            bn=nn.BatchNorm2d(C),
            own=nn.BatchNorm2d(C),
        ),
        IMAGE,
        ["convolution"],
    ),
    "products": (
        lambda: Net(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(C, 3), b=nn.Linear(C, 3, False)),
        ROWS,
        ["addmm"],
    ),
    "series": (
        lambda: nn.Sequential(nn.Linear(C, 9, False), nn.BatchNorm1d(9), nn.Linear(9, 2)),
        ROWS,
        ["addmm"],
    ),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(C, 9, False), nn.Linear(9, 2, False)),
        ROWS,
        ["mm"],
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_what_merges_is_of_the_operators_of_the_program(name):
    layers, shape, wanted = MERGED[name]
    module, x = ready(layers()), rand(*shape)
    assert varying(fold(decomposed(module, x), x)) == wanted


def test_a_norm_in_training_mode_says_so():
    """Its decomposition has the new statistics among its outputs."""
    module = ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C))).train()
    program = exported(module, rand(*IMAGE)).run_decompositions()
    plan = bnfold.plan(program)
    assert plan.folds == ()
    assert [kept.code for kept in plan.kept] == ["training-mode"]


def test_sizes_that_vary():
    module = ready(nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Flatten(2)))
    x = rand(2, 3, 8, 8)
    sizes = {0: torch.export.Dim("n", min=2, max=9), 2: torch.export.Dim("h", min=4, max=64)}
    folded = fold(decomposed(module, x, dynamic_shapes=(sizes,)), x)
    assert affine(folded) == 0


def test_a_norm_that_nothing_reads():
    """What folds into nothing that is needed is certified, too."""

    def code(m: nn.Module, x: Tensor) -> Any:
        m.norm(m.layer(x))
        return x.relu()

    module = ready(Net(code, layer=nn.Conv2d(C, C, 1), norm=nn.BatchNorm2d(C)))
    planned_and_folded(exported(module, rand(*IMAGE)))


def folded_away(program: ExportedProgram, x: Tensor) -> int:
    """How many maps go from the decomposition of a program. Each that is left has a reason; it may
    stand as a Mul and an Add.
    """
    lowered = program.run_decompositions()
    plan, folded = planned_and_folded(lowered)
    same(lowered, folded, x, 1e-8)
    assert affine(folded) <= 2 * sum(kept.kind == "map" for kept in plan.kept)
    return affine(lowered) - affine(folded)


def test_drawn_modules():
    gone = []

    @settings(ONCE, max_examples=8)
    @given(test_random_modules.modules())
    def look(drawn):
        module, rank = drawn
        x = rand(*[test_random_modules.N] * rank)
        program = test_random_modules.exported(module, x)
        if program is not None:
            gone.append(folded_away(program, x))

    look()
    assert len(gone) > 4
    assert sum(gone) >= len(gone)


def test_drawn_networks():
    gone = []

    @settings(ONCE, max_examples=12)
    @given(test_merge_drawn.networks())
    def look(case):
        program = test_merge_drawn.program_of(case)
        if program is not None:
            gone.append(folded_away(program, rand(*case[1])))

    look()
    assert len(gone) > 6
    assert sum(map(bool, gone)) >= len(gone) // 3
