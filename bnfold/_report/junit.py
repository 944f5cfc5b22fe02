"""Findings as JUnit XML, which CI servers show as tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from bnfold._report.findings import Finding

# What XML 1.0 has no way to write.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(model: str, findings: Sequence[Finding], seconds: float) -> str:
    """One test suite, in ASCII: a failure for what failed, a skipped test for what could not be
    judged.
    """
    count = {
        status: sum(f.status == status for f in findings) for status in ("fail", "inconclusive")
    }
    suite = ElementTree.Element(
        "testsuite",
        name=_written(f"bnfold {model}"),
        tests=str(len(findings)),
        failures=str(count["fail"]),
        errors="0",
        skipped=str(count["inconclusive"]),
        time=f"{seconds:.3f}",
    )
    for finding in findings:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"bnfold.{finding.group}",
            name=_written(finding.name),
            time="0",
        )
        message = _written(finding.message)
        if finding.status == "fail":
            failure = ElementTree.SubElement(case, "failure", type=finding.group, message=message)
            failure.text = message
        elif finding.status == "inconclusive":
            ElementTree.SubElement(case, "skipped", type=finding.group, message=message)
        elif message:
            ElementTree.SubElement(case, "system-out").text = message
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    written: bytes = ElementTree.tostring(suites, encoding="us-ascii", xml_declaration=True)
    # ElementTree leaves these as they are in a text, where a reader or a terminal changes them.
    return written.decode("ascii").replace("\r", "&#13;").replace("\t", "&#09;")


def _written(text: str) -> str:
    return _UNWRITABLE.sub("�", text)
