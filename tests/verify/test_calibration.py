from collections import Counter

import numpy as np
import pytest

from .calibration import judge

SEEDS = range(5000, 5060)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_right_folds_never_alarm(dtype: type) -> None:
    verdicts = [report.status for seed in SEEDS if (report := judge(seed, dtype))]
    assert [seed for seed, verdict in zip(SEEDS, verdicts) if verdict == "fail"] == []
    passed = verdicts.count("pass")
    assert passed > (0.6 if dtype is np.float32 else 0.3) * len(SEEDS)


def test_more_draws_clear_what_the_first_three_underrate() -> None:
    report = judge(6953)
    assert report is not None
    assert report.status == "pass"


def test_rolled_weights_are_found_and_never_passed() -> None:
    reports = [report for seed in SEEDS if (report := judge(seed, mistake="rolled"))]
    verdicts = Counter(report.status for report in reports)
    assert verdicts["fail"] > 0.8 * len(reports)
    assert verdicts["pass"] == 0
