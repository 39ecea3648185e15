"""Files for GitHub and for those who cite: they can be read, and say what pyproject.toml and the Makefile say."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from gcpo_bench import __version__
from gcpo_bench.files import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path: Path) -> Any:
    return parse_yaml(path.read_text(encoding="utf-8"))


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["license"]) == (PROJECT["name"], PROJECT["license"])
    assert citation["version"] == __version__
    assert [paper["url"] for paper in citation["references"]] == [PROJECT["urls"]["Paper"]]
