"""Measures how right and wrong folds of small random models compare with the tolerance.

Run `python -m tests.verify.calibration 1000` for the table.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from bnfold._judge.end_to_end import compare
from bnfold._judge.settings import Settings
from bnfold._judge.verdict import EndToEnd

from .pairs import Pair

MISTAKES = ("", "one channel off", "bias off", "rolled")


def judge(seed: int, dtype: type = np.float32, mistake: str = "") -> EndToEnd | None:
    """Compare one random model with its folded form.

    None stands for no case: the fold overflows, or the mistake changes nothing.
    """
    with np.errstate(over="ignore"):
        pair = Pair(seed, dtype, mistake)
    if pair.overflows:
        return None
    if mistake and not pair.spoilt:
        return None
    with tempfile.TemporaryDirectory() as folder:
        original, folded = Path(folder, "original.onnx"), Path(folder, "folded.onnx")
        onnx.save(pair.original, original)
        onnx.save(pair.folded, folded)
        return compare(original, folded, parameters=pair.weights, settings=Settings(seed=seed))


def main(count: int) -> None:
    """Print verdicts and ratios (difference / tolerance) by element type and mistake; exit with 1
    if a right fold is taken for a wrong one.
    """
    alarms = 0
    for dtype in (np.float32, np.float16):
        for mistake in MISTAKES:
            drawn = [judge(seed, dtype, mistake) for seed in range(count)]
            reports = [report for report in drawn if report is not None]
            ratios = [c.ratio for r in reports for c in r.checks if c.ratio is not None]
            alarms += not mistake and sum(report.status == "fail" for report in reports)
            quantiles = np.quantile(ratios, [0.5, 0.99, 1])
            print(
                f"{dtype.__name__:8} {mistake or 'right':16}",
                dict(Counter(report.status for report in reports)),
                "ratio median {:.2g}, 99 % {:.2g}, largest {:.2g}".format(*quantiles),
            )
    if alarms:
        sys.exit(f"{alarms} right folds are taken for wrong ones")


if __name__ == "__main__":
    main(int(sys.argv[1]))
