"""`benchmarks/corruption.py` with a few changed bytes a file; its results hold the whole table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
UNUSED = ("ledger/claim-0002.json", "ledger/released-0002.json")
"""Of a finished cell nobody reads them."""


def test_no_changed_byte_gives_other_numbers_without_a_word(tmp_path: Path) -> None:
    place = HERE.parent / "benchmarks" / "corruption.py"
    spec = importlib.util.spec_from_file_location("corruption", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["corruption"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    outcomes = module.measure(tmp_path, 4)
    assert [each for each in outcomes if each.silent or each.crashed] == []
    assert {each.kind for each in outcomes if not each.detected} == set(UNUSED)
