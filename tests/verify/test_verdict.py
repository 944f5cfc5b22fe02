import json

import pytest

from bnfold._judge.verdict import EndToEnd, OutputCheck, overall


def check(output: str, status: str) -> OutputCheck:
    contested = status == "contested"
    told = "inconclusive" if contested else status
    return OutputCheck(output, "signed", told, contested=contested)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pairs, expected",
    [
        ("", "inconclusive"),
        ("a:pass", "pass"),
        ("a:pass a:inconclusive", "pass"),
        ("a:pass b:inconclusive", "inconclusive"),
        ("a:pass a:fail", "fail"),
        ("a:inconclusive b:fail", "fail"),
        ("a:pass b:pass", "pass"),
        ("a:pass a:contested", "inconclusive"),
        ("a:contested b:fail", "fail"),
    ],
)
def test_every_output_must_be_seen_once_and_none_contested(pairs: str, expected: str) -> None:
    assert overall([check(*pair.split(":")) for pair in pairs.split()]) == expected


def test_a_report_is_valid_json_even_where_figures_are_not_finite() -> None:
    bad = OutputCheck("y", "signed", "fail", float("inf"), 0.0, float("nan"))
    report = EndToEnd("fail", (bad,), ("note",), 0, "runtime", "provider").to_dict()
    back = json.loads(json.dumps(report, allow_nan=False))
    assert back["checks"][0]["difference"] == "inf"
    assert back["checks"][0]["ratio"] == "nan"
    assert back["checks"][0]["power"] is None
