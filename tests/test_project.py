"""What is said about the project in several places is the same in all of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
tomli = pytest.importorskip("tomli", reason="tomli is not installed")

SETTINGS = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(*parts: str) -> Any:
    """A YAML file; the test is skipped where this copy of the project lacks it."""
    path = ROOT.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"there is no {path.name}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_every_promised_python_is_tested() -> None:
    """A classifier is a promise, and so is the lowest version."""
    promised = {
        found[1]
        for line in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    }
    matrix = read(".github", "workflows", "tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert set(matrix["python"]) == promised
    lowest = min(promised, key=lambda version: int(version.partition(".")[2]))
    assert PROJECT["requires-python"] == f">={lowest}"
    systems = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Operating" in line}
    names = {"Linux": "ubuntu-latest", "MacOS": "macos-latest", "Windows": "windows-latest"}
    assert {names[system] for system in systems} == set(matrix["os"])


def test_conda_asks_for_the_same() -> None:
    recipe = read("conda", "recipe.yaml")
    context = recipe["context"]
    assert context["version"] == PROJECT["version"]
    assert f">={context['python_min']}" == PROJECT["requires-python"]
    built = {line.replace(" ", "") for line in recipe["requirements"]["host"]}
    assert built >= set(SETTINGS["build-system"]["requires"])
    asked = {line.partition(";")[0] for line in PROJECT["dependencies"]}
    asked.add("python>=${{python_min}}")
    assert {line.replace(" ", "") for line in recipe["requirements"]["run"]} == asked
    (entry,) = recipe["build"]["python"]["entry_points"]
    assert entry == " = ".join(*PROJECT["scripts"].items())


def test_one_address() -> None:
    """Whoever publishes replaces one name; no other address of this project stands anywhere."""
    files = ("README.md", "CITATION.cff", "action.yml", "conda/recipe.yaml", "pyproject.toml")
    owners = set()
    for path in (*map(ROOT.joinpath, files), *(ROOT / "docs").rglob("*.md"), *WORKFLOWS):
        if path.is_file():
            owners |= set(re.findall(r"([\w.-]+)/bnfold[@/\"\s]", _addresses(path)))
    assert len(owners) == 1, owners


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_nothing_is_published_before_the_address_is_set(tmp_path: Path) -> None:
    """The step of the workflow fails until the command of docs/releasing.md was typed."""
    steps = read(".github", "workflows", "release.yml")["jobs"]["build"]["steps"]
    (guard,) = (step["run"] for step in steps if "OWNER" in step.get("run", ""))
    page = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ +(git grep .*)$", page, re.MULTILINE)
    kept = (*("README.md", "CITATION.cff", "pyproject.toml", "conda/recipe.yaml"), "action.yml")
    for path in (*map(ROOT.joinpath, kept), *(ROOT / "docs").rglob("*.md"), *WORKFLOWS):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())

    def ended(line: str) -> int:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=tmp_path, capture_output=True
        ).returncode

    assert ended("git init -q . && git add -A") == 0
    assert ended(guard) == 1
    assert ended(command) == 0
    assert ended(guard) == 0
    address = tomli.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))
    assert address["project"]["urls"]["Homepage"] == "https://github.com/your-name/bnfold"


def test_what_users_name_is_a_tag_of_this_version() -> None:
    """The action by the tag of its major version, the hook by the version itself."""
    page = (ROOT / "docs" / "how-to" / "ci.md").read_text(encoding="utf-8")
    major = PROJECT["version"].partition(".")[0]
    assert set(re.findall(r"/bnfold@(\S+)", page)) == {f"v{major}"}
    assert set(re.findall(r"rev: (\S+)", page)) == {f"v{PROJECT['version']}"}


def test_each_link_on_pypi_has_an_address() -> None:
    """PyPI has README.md alone: a link to a file beside it leads nowhere, and no picture shows."""
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    held = len(re.findall(r"\]\(", shown))
    for one in SETTINGS["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        shown = re.sub(one["pattern"], one["replacement"], shown)
    addresses = re.findall(r"\]\((https://[^)]+)\)", shown)
    assert len(addresses) == held > 20
    for address in addresses:
        if own := re.search(r"OWNER/bnfold/(?:blob/)?v\$HFPR_VERSION/([^#]+)", address):
            assert (ROOT / own[1]).is_file(), address
    pictures = [each for each in addresses if each.endswith(".png")]
    assert pictures and all("//raw.githubusercontent.com/" in each for each in pictures)


def _addresses(path: Path) -> str:
    """The lines of a file that name a repository."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(f"{line} " for line in lines if "github.com/" in line or "uses:" in line)


def test_citation() -> None:
    citation = read("CITATION.cff")
    assert citation["license"] == PROJECT["license"]
    assert [a["name"] for a in citation["authors"]] == [a["name"] for a in PROJECT["authors"]]
    assert citation["repository-code"] == PROJECT["urls"]["Homepage"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_sound(path: Path) -> None:
    """Each is YAML with jobs whose steps do one thing, needs what is there, and asks for rights."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow[True], "on: says when it runs"  # YAML 1.1 takes the word for a boolean
    for job in workflow["jobs"].values():
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])
        for step in job["steps"]:
            assert len({"run", "uses"} & set(step)) == 1
