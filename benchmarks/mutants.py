"""Does a test fail when one line of the code is wrong? Random one-line mutants, run against the tests that reach them.

    pip install cosmic-ray==8.7.0
    python -m pytest -n 2 --cov --cov-context=test        # first: which test runs which line, left in .coverage
    python benchmarks/mutants.py choose --count 80 --seed 0 --out mutants.json
    python benchmarks/mutants.py run mutants.json

Mutants come from Cosmic Ray's operators (numbers, comparisons, arithmetic, booleans, loops, not) at places drawn with
a seed, as many in each of the four parts. Annotations and type-checking blocks are left out: nothing runs them. `run`
writes each mutant into this checkout, runs the tests that reach its function and puts the file back, so use a clone of
its own. A mutant is killed by the first test that fails. Of very many tests the nearest by name are run; those that
start a process of their own are not seen by coverage, so a survivor is to be looked at by hand.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("training", "evaluators", "reports", "gcpo_bench")
LIMIT_S = 900
"""A mutant whose tests take longer than this hangs; that kills it."""
FIRST, MOST = 60, 160
"""Tests that are run first, nearest by name, and in all if these pass."""
LAST = ("ablate_cli", "concurrency", "distributed", "executors", "gate_runs", "memory", "report")
"""Files of tests that start processes or draw pages: run after the others."""


def sources(part: str) -> list[Path]:
    return [
        path.relative_to(ROOT)
        for path in sorted((ROOT / part).rglob("*.py"))
        if not any(other.is_symlink() for other in [path, *path.parents] if other != ROOT)
    ]


def idle_lines(tree: ast.Module) -> set[int]:
    """Lines of annotations, docstrings, imports and type-checking blocks: changing them changes nothing that runs."""
    idle: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()) | ast.AnnAssign(value=None):
                idle.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            case ast.If() if "TYPE_CHECKING" in ast.unparse(node.test):
                idle.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            case ast.FunctionDef():  # a signature's defaults go with its annotations
                idle.update(range(node.lineno, node.body[0].lineno))
    return idle


def sites(path: Path) -> Iterator[dict[str, Any]]:
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    code = (ROOT / path).read_text(encoding="utf-8")
    idle, tree = idle_lines(ast.parse(code)), get_ast(code)
    for name in sorted(plugins.operator_names()):
        operator_class = plugins.get_operator(name)
        if operator_class.arguments() or "no_op" in name or "ExceptionReplacer" in name or "RemoveDecorator" in name:
            continue
        operator = operator_class()
        places = (place for node in ast_nodes(tree) for place in operator.mutation_positions(node))
        for occurrence, (start, _) in enumerate(places):
            if start[0] not in idle:
                yield {"path": str(path), "operator": name, "occurrence": occurrence, "line": start[0]}


def mutated(mutant: dict[str, Any]) -> tuple[str, str]:
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    code = (ROOT / mutant["path"]).read_text(encoding="utf-8")
    return code, mutate_code(code, plugins.get_operator(mutant["operator"])(), mutant["occurrence"]) or code


def choose(count: int, seed: int) -> list[dict[str, Any]]:
    """Mutants at distinct lines, as many in each part; drawn over lines, then over what can change there."""
    generator, chosen = random.Random(seed), []
    for part in PARTS:
        by_line: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for path in sources(part):
            for site in sites(path):
                by_line[site["path"], site["line"]].append(site)
        for line in generator.sample(sorted(by_line), count // len(PARTS)):
            mutant = generator.choice(by_line[line])
            before, after = mutated(mutant)
            changes = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
            mutant["change"] = [text for text in changes if text[:1] in "+-" and text[:3] not in ("+++", "---")]
            chosen.append(mutant)
    return chosen


def function_at(path: Path, line: int) -> str:
    """Dotted name of the innermost function or class that holds a line; empty at the top of a module."""
    name, tree = "", ast.parse((ROOT / path).read_text(encoding="utf-8"))
    queue: list[tuple[str, ast.AST]] = [("", tree)]
    while queue:
        prefix, node = queue.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.lineno <= line <= (child.end_lineno or 0):
                name = f"{prefix}{child.name}"
                queue.append((f"{name}.", child))
    return name


def tests_of(mutant: dict[str, Any], coverage_file: Path, measured: Path) -> list[str]:
    """Tests that ran the mutant's line when coverage was measured in the checkout `measured`; else its function."""
    import coverage

    data = coverage.CoverageData(str(coverage_file))
    data.read()
    relative, name = Path(mutant["path"]), function_at(Path(mutant["path"]), mutant["line"])
    known = {file for file in data.measured_files() if file.endswith(f"/{relative}")}
    tests: set[str] = set()
    for file in known:
        source = measured / relative
        tree = ast.parse(source.read_text(encoding="utf-8")) if source.exists() else ast.Module([], [])
        lines = set(span_of(tree, name)) if name else None
        by_line = {line: set(filter(None, contexts)) for line, contexts in data.contexts_by_lineno(file).items()}
        if by_line.get(mutant["line"]):
            lines = {mutant["line"]}
        for line, contexts in by_line.items():
            if lines is None or line in lines:
                tests |= {context.partition("|")[0] for context in contexts}
    stem = relative.stem.replace("_", "")
    slow = tuple(f"tests/test_{name}.py" for name in LAST)
    return sorted(tests, key=lambda test: (test.startswith(slow), stem not in test.replace("_", ""), test))


def span_of(tree: ast.AST, dotted: str) -> range:
    for part in dotted.split("."):
        found = [child for child in ast.iter_child_nodes(tree) if getattr(child, "name", None) == part]
        if not found:
            return range(0)
        tree = found[0]
    first: int = tree.body[0].lineno  # type: ignore[attr-defined]  # the `def` line itself runs at import, by any test
    return range(first, tree.end_lineno + 1)  # type: ignore[attr-defined]


def collected() -> set[str]:
    listing = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {line for line in listing.stdout.splitlines() if "::" in line}


def verdict(tests: Sequence[str]) -> str | None:
    """The first failing test, "hangs" or None where all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", "-rfE", *tests]
    try:
        outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return "hangs"
    if outcome.returncode in (0, 5):
        return None
    failed = [line for line in outcome.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split()[1] if failed else f"exit {outcome.returncode}"


def run(mutants: list[dict[str, Any]], coverage_file: Path, measured: Path, out: Path) -> None:
    known = collected()
    for mutant in mutants:
        if "killed_by" in mutant:
            continue
        tests = [test for test in tests_of(mutant, coverage_file, measured) if test in known]
        path = ROOT / mutant["path"]
        before, after = mutated(mutant)
        path.write_text(after, encoding="utf-8")
        try:
            killer = None
            for batch in (tests[:FIRST], tests[FIRST:MOST]):
                if batch and killer is None:
                    killer = verdict(batch)
        finally:
            path.write_text(before, encoding="utf-8")
        name = function_at(Path(mutant["path"]), mutant["line"])
        mutant |= {"function": name, "tests": len(tests), "killed_by": killer}
        out.write_text(json.dumps(mutants, indent=1), encoding="utf-8")
        print(f"{mutant['path']}:{mutant['line']} {mutant['change']} -> {killer or 'SURVIVED'}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    choosing = commands.add_parser("choose")
    choosing.add_argument("--count", type=int, default=80)
    choosing.add_argument("--seed", type=int, default=0)
    choosing.add_argument("--out", type=Path, default=Path("mutants.json"))
    running = commands.add_parser("run")
    running.add_argument("mutants", type=Path)
    running.add_argument("--coverage", type=Path, default=ROOT / ".coverage")
    running.add_argument("--measured", type=Path, default=ROOT, help="the checkout that coverage was measured in")
    options = parser.parse_args()
    if options.command == "choose":
        options.out.write_text(json.dumps(choose(options.count, options.seed), indent=1), encoding="utf-8")
    else:
        run(json.loads(options.mutants.read_text()), options.coverage, options.measured, options.mutants)
    return 0


if __name__ == "__main__":
    sys.exit(main())
