"""Fold the smaller architectures of timm and torchvision, with random weights.

Each is folded as a module and as an exported program, in float64, and compared with the original on
one input. The BatchNorms that run are counted before and after, beside what other fusions leave of
them: those of torch.fx and of torch.ao, and timm's own reparameterization::

    pip install --no-deps timm torchvision
    python benchmarks/zoo.py zoo.jsonl              # goes on where it was stopped
    python benchmarks/zoo.py zoo.jsonl --table      # writes benchmarks/zoo.md

Weights are as the packages draw them; statistics, scales and shifts of norms are drawn. Inputs are
as small as the architecture takes. Those with fewer than 40 million parameters are taken: of each
module of timm the five smallest, of torchvision all. One that needs more time or memory than its
bound is told so. The table names, too, what was chosen and not reached, and what was not tried, for
its size is not known: it cannot be made without memory. The exit status of ``--table`` is 1 if a
fold is wrong, or if another tool leaves fewer BatchNorms.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import bnfold

SECONDS = 240
GIBIBYTES = 10
PARAMETERS = 40e6
OF_EACH_MODULE = 5
OF_EACH_PROCESS = 20
SIZES = (64, 96, 128, 160, 224, 256)
TOLERANCE = 1e-9
"""What float64 may be apart, relative to the largest number of an output."""
OTHERS = ("fx", "fuse_fx", "timm")
COMPILED = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""Operators of torchvision's compiled part, which may be built for another torch."""


def main() -> None:
    """Fold what is not in the results yet, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--table", action="store_true", help="write benchmarks/zoo.md")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this long")
    parser.add_argument("--only", nargs="*", default=(), help="these architectures")
    given = parser.parse_args()
    done = [json.loads(line) for line in _lines(given.results)]
    if given.table:
        sys.exit(_write_table(done, *_chosen()))
    names = list(given.only) or _chosen()[0]
    left = [name for name in names if name not in {row["name"] for row in done}]
    print(f"{len(names)} architectures, {len(left)} to fold", flush=True)
    end = time.monotonic() + given.seconds
    with given.results.open("a", encoding="utf-8") as file:
        for row in _folded(left, end):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(json.dumps(row), flush=True)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _folded(names: list[str], end: float) -> Iterator[dict[str, Any]]:
    """The rows of architectures, each folded in a process that may die."""
    pool: ProcessPoolExecutor | None = None
    for number, name in enumerate(names):
        if time.monotonic() > end:
            break
        if pool is not None and number % OF_EACH_PROCESS == 0:  # What PyTorch keeps grows.
            pool.shutdown()
            pool = None
        pool = pool or ProcessPoolExecutor(1, get_context("spawn"), _begin)
        try:
            yield pool.submit(_row, name).result()
        except BrokenProcessPool:
            pool = None
            yield {"name": name, "error": "the process died; memory may have run out"}
    if pool is not None:
        pool.shutdown()


def _begin() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (GIBIBYTES << 30, GIBIBYTES << 30))


# --- architectures ----------------------------------------------------------------------------


def _torchvision() -> Any:
    """torchvision, with names for what its compiled part has, if that does not fit this torch."""
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for name, schema in COMPILED.items():
            torch.library.define(f"torchvision::{name}", schema)
        import torchvision
    return torchvision


def _built(name: str) -> nn.Module:
    package, _, own = name.partition("/")
    if package == "torchvision":
        models = _torchvision().models
        alone = {"weights_backbone": None} if own in _of(models.segmentation) else {}
        module: nn.Module = models.get_model(own, weights=None, **alone)
        return module
    _torchvision()
    import timm

    made: nn.Module = timm.create_model(own)
    return made


def _chosen() -> tuple[list[str], list[str]]:
    """The names of architectures, the smallest first; and of those whose size is not known."""
    vision = _torchvision().models
    import timm

    names = [f"torchvision/{n}" for n in (*_of(vision), *_of(vision.segmentation))]
    for module in timm.list_modules():
        own = sorted((f"timm/{name}" for name in timm.list_models(module=module)), key=_size)
        names += [name for at, name in enumerate(own) if at < OF_EACH_MODULE or _size(name) == inf]
    sizes = {name: _size(name) for name in names}
    chosen = sorted((name for name in sizes if sizes[name] < PARAMETERS), key=lambda n: sizes[n])
    return chosen, [name for name in sizes if sizes[name] == inf]


def _of(module: Any) -> list[str]:
    names: list[str] = _torchvision().models.list_models(module=module)
    return names


@cache
def _size(name: str) -> float:
    """How many parameters an architecture has, or without end if it cannot be made."""
    try:
        with torch.device("meta"):
            return float(sum(p.numel() for p in _built(name).parameters()))
    except Exception as error:
        print(f"{name} cannot be made without memory: {error}", file=sys.stderr)
        return inf


def _drawn(module: nn.Module) -> nn.Module:
    """The module in float64, with the numbers of its norms drawn."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*module.named_buffers(), *module.named_parameters()]:
        if not tensor.is_floating_point():
            continue
        with torch.no_grad():
            if "var" in name:
                tensor.copy_(0.5 + 1.5 * torch.rand(tensor.shape, generator=generator))
            elif tensor.ndim < 2:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return module.eval().double()


def _input(module: nn.Module) -> Tensor:
    """Two images of the smallest size that the module takes."""
    config = getattr(module, "default_cfg", {})
    channels, wanted = config.get("input_size", (3, 224, 224))[:2]
    sizes = (wanted,) if config.get("fixed_input_size") else (*SIZES, wanted)
    for size in sizes:
        image = torch.randn(
            2, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        try:
            with torch.no_grad():
                module(image)
        except Exception as error:
            last = error
            continue
        return image
    raise last


# --- one architecture -------------------------------------------------------------------------


def _row(name: str) -> dict[str, Any]:
    """What folding does to an architecture."""
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        return {"name": name, **_measured(name)}
    except Exception as error:
        what = str(error).splitlines()[0][:160] if str(error) else ""
        return {"name": name, "error": f"{type(error).__name__}: {what}"}
    finally:
        signal.alarm(0)


def _late(*_: object) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


def _measured(name: str) -> dict[str, Any]:
    module = _drawn(_built(name))
    image = _input(module)
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in module.parameters()),
        "size": image.shape[-1],
        "norms": _norms(module, image),
    }
    program, seconds = _timed(lambda: torch.export.export(module, (image,), strict=False))
    folded, of_fold = _timed(lambda: bnfold.fold(module, (image,)))
    row |= {"export": round(seconds, 2), "fold": round(of_fold / seconds, 2)}
    row |= {"left": _norms(folded, image)}
    row |= {"difference": _difference(module(image), folded(image))}
    if row["left"]:
        row["kept"] = _codes(bnfold.plan(module, (image,)))
        merged = bnfold.fold(module, (image,), merge=True)
        row["merged"] = _norms(merged, image)
        row["difference"] = max(row["difference"], _difference(module(image), merged(image)))
    plan = bnfold.plan(program)
    exported = bnfold.fold(program)
    row["program"] = {
        "norms": _norms(program.module(), image),
        "left": _norms(exported.module(), image),
        "difference": _difference(module(image), exported.module()(image)),
        "kept": _codes(plan),
    }
    row |= {o: _left(fuse, module, image) for o, fuse in zip(OTHERS, _FUSIONS, strict=True)}
    return row


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    return call(), time.perf_counter() - begun


class _Counting(TorchDispatchMode):
    """Counts the BatchNorms that run, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.norms: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.norms += int("batch_norm" in func.__name__)
        return func(*args, **(kwargs or {}))


def _norms(module: nn.Module, image: Tensor) -> int:
    with torch.no_grad(), _Counting() as counting:
        module(image)
    return int(counting.norms)


def _codes(plan: bnfold.Plan) -> dict[str, int]:
    """Why norms stay, by code."""
    kept = (k for k in plan.kept if k.kind == "map" and "batch_norm" in k.op)
    return dict(Counter(k.code for k in kept))


def _difference(wanted: Any, found: Any) -> float:
    """The largest difference of two results, relative to the largest number."""
    pairs = zip(_tensors(wanted), _tensors(found), strict=True)
    apart = [float((a - b).abs().max() / a.abs().max().clamp_min(1e-300)) for a, b in pairs]
    return max(apart, default=0.0)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _fx(module: nn.Module) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    return fuse(module)


def _fuse_fx(module: nn.Module) -> nn.Module:
    from torch.ao.quantization.quantize_fx import fuse_fx

    return fuse_fx(module)


def _timm(module: nn.Module) -> nn.Module:
    from timm.utils.model import reparameterize_model

    made: nn.Module = reparameterize_model(module)
    return made


_FUSIONS = (_fx, _fuse_fx, _timm)


def _left(fuse: Callable[[nn.Module], nn.Module], module: nn.Module, image: Tensor) -> int | None:
    """How many norms another fusion leaves; None if it raises."""
    try:
        return _norms(fuse(copy.deepcopy(module)), image)
    except Exception:
        return None


# --- the table --------------------------------------------------------------------------------

_COLUMNS = (
    *("architecture", "norms", "module", "merged", "program", "fx", "fuse_fx", "timm"),
    *("apart", "fold", "stays"),
)
_HEAD = f"""# Architectures of timm and torchvision

Made by `python benchmarks/zoo.py`; its text says how. BatchNorms that run before, and after folding
the module, the module with `merge=True` where that was tried, and its exported program; `fx`,
`fuse_fx` and `timm` are what the fusions of torch.fx, of torch.ao and timm's own leave of those of
the module (a dash where they raise). `apart` is the largest difference, relative, in float64;
`fold` the time of folding the module over that of its export, on a shared machine. What stays is
listed with its code.

| {" | ".join(_COLUMNS)} |
|{"---|" * len(_COLUMNS)}
"""


def _write_table(rows: list[dict[str, Any]], chosen: list[str], unmade: list[str]) -> int:
    """Write the table. Gives 1 if a fold is wrong or another tool leaves fewer norms."""
    fine = sorted((row for row in rows if "error" not in row), key=lambda row: str(row["name"]))
    failed = [row for row in rows if "error" in row]
    wrong = [row["name"] for row in fine if not _apart(row) < TOLERANCE]
    behind = [
        f"{row['name']} ({other} {row[other]} < {_fewest(row)})"
        for row in fine
        for other in OTHERS
        if row[other] is not None and row[other] < _fewest(row)
    ]
    ratios = sorted(row["fold"] for row in fine)
    ends = [
        f"{len(fine)} architectures, {len(wrong)} wrong; "
        f"{sum(row['norms'] for row in fine)} norms, {sum(row['left'] for row in fine)} left in "
        f"modules, {sum(map(_fewest, fine))} with `merge=True` where norms are left, "
        f"{sum(row['program']['left'] for row in fine)} in programs. "
        f"Median of `fold`: {ratios[len(ratios) // 2] if ratios else 0}.",
        "Another tool leaves fewer: " + ("; ".join(behind) or "nowhere") + ".",
        *(f"Not folded: {row['name']} ({row['error']})." for row in failed),
    ]
    missed = [name for name in chosen if name not in {row["name"] for row in rows}]
    ends += [
        "Chosen and not reached: " + (", ".join(missed) or "none") + ".",
        "Not tried, as it cannot be made without memory: " + (", ".join(unmade) or "none") + ".",
    ]
    lines = "".join(map(_line, fine))
    path = Path(__file__).with_suffix(".md")
    path.write_text(_HEAD + lines + "\n" + "\n\n".join(ends) + "\n", encoding="utf-8")
    print("\n".join(ends))
    return int(bool(wrong or behind))


def _fewest(row: dict[str, Any]) -> int:
    return int(row.get("merged", row["left"]))


def _apart(row: dict[str, Any]) -> float:
    return max(float(row["difference"]), float(row["program"]["difference"]))


def _line(row: dict[str, Any]) -> str:
    program = row["program"]
    codes = Counter(row.get("kept", {})) | Counter(program["kept"])
    stays = ", ".join(f"{code} {count}" for code, count in sorted(codes.items()))
    others = " | ".join("-" if row[o] is None else str(row[o]) for o in OTHERS)
    return (
        f"| {row['name']} | {row['norms']} | {row['left']} | {row.get('merged', '-')} "
        f"| {program['left']} | {others} "
        f"| {_apart(row):.0e} | {row['fold']} | {stays} |\n"
    )


if __name__ == "__main__":
    main()
