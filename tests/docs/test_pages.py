"""What the documentation says: its code runs, its outputs are real, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bnfold

from .pages import ROOT, blocks, pages
from .running import Page, Printed

LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = pages()


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shown(wrong: list[Printed]) -> str:
    parts = [f"line {p.block.line} has\n{p.expected}\nbut it printed\n{p.got}" for p in wrong]
    return "\n".join([*parts, "python -m tests.docs --write puts it right"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code(page: Path, tmp_path: Path) -> None:
    """Every block runs, in order; what the page says that it prints, it prints."""
    run = Page(tmp_path)
    printed = [run.run(block) for block in blocks(page)]
    wrong = [p for p in printed if p is not None and not p.agrees]
    assert not wrong, shown(wrong)


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("C*.md"))], ids=name)
def test_links(page: Path) -> None:
    """A relative link names a file that is there, and a heading that it has."""
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, heading = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name(page)}: {link}"
        if heading:
            assert heading in headings(path), f"{name(page)}: {link}"


def test_generated_pages_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads them in the repository reads what is true; click words options by version."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import generate

    written = {n: (generate.FOLDER / f"{n}.md").read_text("utf-8") for n in generate.PAGES}
    for name_ in ("codes", "schemas"):
        assert written[name_] == generate.PAGES[name_](), "python docs/generate.py puts it right"
    options = re.findall(r"--[a-z][a-z-]+", generate.commands())
    assert {o for o in options if o not in written["command"]} == set()


def headings(page: Path) -> set[str]:
    """The anchors that servers of Markdown make of headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in found)
    return {title.replace(" ", "-") for title in plain}


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    found = re.findall(r":: bnfold\.(.*)", page)
    named = set(found)
    assert len(found) == len(named), "a name that stands twice is a warning of the build"
    source = (ROOT / "bnfold" / "nn.py").read_text(encoding="utf-8")  # importing it needs torch
    modules = re.findall(r'"(\w+)"', source[source.index("__all__") :].split("]")[0])
    assert modules
    assert {*bnfold.__all__, *(f"nn.{name}" for name in modules)} - {"__version__"} <= named


@pytest.mark.parametrize("page", ["README.md", "docs/comparison.md"])
def test_figures_are_the_measured_ones(page: str) -> None:
    """A row of the comparison is one that the benchmark has printed."""
    measured = (ROOT / "benchmarks" / "comparison.md").read_text(encoding="utf-8").splitlines()
    text = (ROOT / page).read_text(encoding="utf-8").splitlines()
    rows = [line for line in text if re.match(r"\| [\w ()]+ \d+\.\d+\.\d+ \|", line)]
    assert len(rows) >= 5 and set(rows) <= set(measured)
    assert measured[measured.index(rows[0]) - 2] in text, "the columns are the same"


def test_readme_is_short() -> None:
    """Nobody reads a long one; what does not fit has a page."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_a_wrong_output_is_seen(tmp_path: Path) -> None:
    """The runner notices: other words, another exit code, an exception."""
    page = tmp_path / "page.md"
    run = Page(tmp_path)
    page.write_text("```console\n$ bnfold explain no-gain\nwrong\n```\n", encoding="utf-8")
    (block,) = blocks(page)
    printed = run.run(block)
    assert printed is not None and not printed.agrees
    for text in ("console\n$ bnfold nothing.onnx", "python\n1 / 0", "rust\nfn main() {}"):
        page.write_text(f"```{text}\n```\n", encoding="utf-8")
        (block,) = blocks(page)
        with pytest.raises((AssertionError, ZeroDivisionError)):
            run.run(block)
