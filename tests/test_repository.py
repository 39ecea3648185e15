"""Files for GitHub and for those who cite: they can be read, and say what pyproject.toml and the Makefile say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gcpo_bench import __version__
from gcpo_bench.files import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def read(path: Path) -> Any:
    return parse_yaml(path.read_text(encoding="utf-8"))


def commands(target: str) -> list[str]:
    """What the Makefile runs for a target, without the folder of the commands."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found is not None, f"make {target} does not exist"
    return [line.strip().removeprefix("$(BIN)/") for line in found[1].splitlines()]


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["license"]) == (PROJECT["name"], PROJECT["license"])
    assert citation["version"] == __version__
    assert [paper["url"] for paper in citation["references"]] == [PROJECT["urls"]["Paper"]]


def test_workflows_run_on_each_python_that_the_project_names() -> None:
    prefix = "Programming Language :: Python :: "
    named = [item.removeprefix(prefix) for item in PROJECT["classifiers"] if item.startswith(prefix)]
    assert PROJECT["requires-python"] == f">={named[0]}"
    for path in WORKFLOWS:
        for job in read(path)["jobs"].values():
            assert job["strategy"]["matrix"]["python"] == named, path.name


def test_workflows_run_tests_lint_and_gate() -> None:
    steps = [step for path in WORKFLOWS for job in read(path)["jobs"].values() for step in job["steps"]]
    targets = {step["run"].removeprefix("make ") for step in steps if "run" in step}
    assert targets == {"demo", "gate", "lint", "test"}
    assert all(commands(target) for target in targets)


def test_hooks_are_what_lint_runs() -> None:
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"  # the tools of the dev extra, without network
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    programs = [hook["entry"].removesuffix(" --force-exclude") for hook in local["hooks"]]
    assert commands("lint") == ["ruff check .", "ruff format --check .", "mypy"]
    assert programs == ["ruff check", "ruff format", "mypy"]
    declared = {re.split(r"[<>=]", need)[0] for need in PROJECT["optional-dependencies"]["dev"]}
    assert {program.split()[0] for program in programs} <= declared


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_ask_with_fields_of_their_own(path: Path) -> None:
    form = read(path)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_a_bug_is_told_with_its_command_and_what_doctor_says() -> None:
    fields = {field["id"]: field for field in read(ROOT / ".github/ISSUE_TEMPLATE/bug.yml")["body"] if "id" in field}
    required = {name for name, field in fields.items() if field.get("validations", {}).get("required")}
    assert required == {"command", "expected", "seen", "doctor"}


def test_links_of_the_security_policy_lead_somewhere() -> None:
    links = re.findall(r"\]\((.+?)\)", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert "docs/security.md" in links
    assert all((ROOT / link).is_file() for link in links)
