"""``bnfold.report``: the page in Python."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._errors import UsageError
from bnfold._judge.settings import Settings
from bnfold._judge.two_files import compare_files
from bnfold._pipeline.models import fold_file
from bnfold._report.page.document import Run
from bnfold._report.page.layout import layout_library
from bnfold._report.page.making import page_of_comparison, page_of_fold
from bnfold._report.page.witness import Witness
from bnfold._report.page.writing import check_place
from bnfold._run.input_sets import InputSet, load_inputs
from bnfold._run.session import hush

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def report(
    model: str | os.PathLike[str],
    page: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    folded: str | os.PathLike[str] | None = None,
    inputs: str | os.PathLike[str] | Mapping[str, NDArray[np.generic]] | None = None,
    seed: int = 0,
    timeout: float | None = None,
    freeze_initializers: bool = False,
    follow_links: bool = False,
) -> Path:
    """Write a page that shows a file of ONNX before and after folding, and the verdict.

    The page is one HTML file, which asks no network for anything. ``output`` is where the folded
    model goes, if it is wanted; a verdict of "fail" writes the page and no model. With ``folded``
    nothing is folded: the two files are compared, as `bnfold.verify` does. The other options are
    those of `bnfold.verify`. Gives the path of the page. Raises `UsageError` for files that cannot
    be read or written, for a program of PyTorch, and without ``bnfold[report]``; ``TypeError`` for
    what is no path.
    """
    begun = time.monotonic()
    given = {"model": model, "page": page, "output": output, "folded": folded}
    for name, each in given.items():
        if each is not None and not isinstance(each, str | os.PathLike):
            raise TypeError(f"{name} is a path, not a {type(each).__name__}")
    if output is not None and folded is not None:
        raise UsageError("give either output or folded, not both: two files are only compared")
    source, target = Path(model), Path(page)
    others = [Path(each) for each in (output, folded) if each is not None]
    for each in (source, *others):
        if each.suffix == ".pt2":
            raise UsageError(f"a page shows files of ONNX, and {each} is a program of PyTorch")
    check_place(target, source, *others)
    layout_library()
    settings = Settings(
        seed,
        seconds=timeout,
        frozen=freeze_initializers,
        follow_links=follow_links,
        spread=True,
    )
    sets: list[InputSet] | None
    if isinstance(inputs, Mapping):
        sets = [InputSet("given", dict(inputs))]
    else:
        sets = None if inputs is None else load_inputs(Path(inputs))
    if folded is not None:
        hush()
        (second,) = others
        result = compare_files(source, second, sets, settings)
        typed = ["verify", str(source), str(second), "--html", str(target)]
        page_of_comparison(target, source, second, result, _run(typed, begun), follow_links)
        return target
    written = others[0] if others else None
    seen = Witness(target, written)
    outcome = fold_file(
        source,
        written,
        verify=True,
        inputs=sets,
        progress=lambda _: None,
        settings=settings,
        report=target,
        observer=seen,
    )
    typed = [str(source), *(["-o", str(written)] if written else []), "--html", str(target)]
    page_of_fold(target, outcome, seen, _run(typed, begun))
    return target


def _run(typed: list[str], begun: float) -> Run:
    return Run([shlex.join(["bnfold", *typed])], time.monotonic() - begun)
