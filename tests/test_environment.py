"""What a run records about where it ran, and what it never records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from gcpo_bench import __version__, environment


def test_a_record_says_what_is_needed_to_repeat_a_run() -> None:
    record = environment.record(["gcpo-bench", "train", "--seed", "1"])
    assert record["argv"] == ["gcpo-bench", "train", "--seed", "1"]
    assert record["version"] == __version__
    assert datetime.fromisoformat(record["time"]).utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert record["packages"]["numpy"]
    assert record["cores"] >= 1
    assert record["memory_bytes"] > 10**8
    assert json.loads(json.dumps(record)) == record


def test_the_record_is_of_this_process_unless_told_otherwise() -> None:
    assert environment.record()["argv"] == sys.argv


def test_secrets_in_the_environment_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "swordfish-7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    record = environment.record([])
    assert "swordfish-7" not in json.dumps(record)
    assert set(record["variables"]) <= set(environment.VARIABLES)
    assert record["variables"]["OMP_NUM_THREADS"] == "3"


def test_recording_does_not_import_torch() -> None:
    code = "import sys; from gcpo_bench import environment; environment.record([]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_has_no_version() -> None:
    assert environment.package_version("no-such-package-anywhere") is None


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    (tmp_path / "file").write_text("one\n")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, env={**os.environ, **identity})
    return tmp_path


def test_a_clean_checkout_has_a_commit_and_no_changes(checkout: Path) -> None:
    found = environment._checkout(checkout)
    assert len(str(found["commit"])) == 40
    assert found["dirty"] is None


def test_each_state_of_a_changed_checkout_has_its_own_hash(checkout: Path) -> None:
    (checkout / "file").write_text("two\n")
    changed = environment._checkout(checkout)["dirty"]
    (checkout / "file").write_text("three\n")
    changed_again = environment._checkout(checkout)["dirty"]
    (checkout / "new").write_text("x\n")
    with_new_file = environment._checkout(checkout)["dirty"]
    assert len({changed, changed_again, with_new_file, None}) == 4


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert environment._checkout(tmp_path) == {"commit": None, "dirty": None}


def test_a_broken_checkout_is_recorded_without_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("nonsense")
    assert environment._checkout(tmp_path) == {"commit": None, "dirty": None}


# ---------------------------------------------------------------- memory

GB = 10**9


def machine(root: Path, member: str, groups: dict[str, dict[str, str]]) -> Path:
    """A file system that says 8 GB are left of the machine, and these control groups."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 * GB // 1024} kB\n")
    (root / "proc" / "self" / "cgroup").write_text(member)
    for group, files in groups.items():
        folder = root / "sys" / "fs" / "cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("member", "groups", "free"),
    [
        ("", {}, 8 * GB),
        ("0::/\n", {"": {}}, 8 * GB),
        # the job's own group says nothing; the one around it allows 6 GB, of which 3 are used, 1 of that for files
        (
            "0::/slurm/job\n",
            {
                "slurm/job": {"memory.max": "max\n", "memory.current": "5", "memory.stat": "anon 5\n"},
                "slurm": {
                    "memory.max": f"{6 * GB}\n",
                    "memory.current": f"{3 * GB}\n",
                    "memory.stat": f"anon {2 * GB}\ninactive_file {GB}\n",
                },
            },
            4 * GB,
        ),
        (
            "3:cpu:/elsewhere\n4:memory:/docker/x\n0::/\n",
            {
                "memory/docker/x": {
                    "memory.limit_in_bytes": f"{2 * GB}\n",
                    "memory.usage_in_bytes": f"{GB}\n",
                    "memory.stat": "cache 0\ninactive_file 0\n",
                }
            },
            GB,
        ),
        (
            "4:memory:/x\n",
            {"memory/x": {"memory.limit_in_bytes": f"{2**63}", "memory.usage_in_bytes": "5", "memory.stat": ""}},
            8 * GB,
        ),
    ],
)
def test_free_memory_is_what_machine_and_container_leave(
    tmp_path: Path, member: str, groups: dict[str, dict[str, str]], free: int
) -> None:
    system = machine(tmp_path, member, groups)
    assert environment.free_memory_bytes(system) == pytest.approx(free, abs=1024)
    assert environment.usable_memory_bytes(system) <= environment.memory_bytes()


def test_this_machine_has_memory_left() -> None:
    assert 0 < environment.free_memory_bytes() <= environment.usable_memory_bytes() <= environment.memory_bytes()


def test_what_changes_the_numbers_of_a_run_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to change the bits of trained weights: which instructions torch and MKL may use."""
    for name in ("ATEN_CPU_CAPABILITY", "MKL_CBWR"):
        monkeypatch.setenv(name, "default")
        assert environment.record([])["variables"][name] == "default"


@pytest.mark.parametrize("text", ["", "x", "7", "null"])
def test_a_variable_that_holds_no_command_stops_nothing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(environment.COMMAND, text)
    assert environment.command() == sys.argv


DRAW = """
import hashlib, sys
from gcpo_bench.reports.plots import Point, Series, chart_files, ladder, line_chart, phase_bars, points_chart
point = Point(label="a_b $c$", y=1.0, low=0.5, high=1.5, x=2.0)
words = dict(name="n", description="d")
charts = [
    line_chart([Series(label="a", x=[0, 1], y=[1.0, -2.0])], x_label="x", y_label="y", **words),
    ladder([point], x_label="x", **words),
    points_chart({"a": [point]}, x_label="x", y_label="y", joined=False, **words),
    phase_bars({"a": {"rollout": 1.0}}, **words),
]
for chart in charts:
    print(hashlib.sha256(chart.svg.encode()).hexdigest())
    for name, content in chart_files(chart).items():
        print(name, hashlib.sha256(content).hexdigest())
"""
STYLES = {
    "plain": "",
    "tex": """
text.usetex: True
font.family: serif
axes.unicode_minus: False
svg.hashsalt: mine
savefig.bbox: tight
""",
    "loud": """
font.size: 3
axes.grid: True
path.sketch: 1,100,2
lines.linewidth: 9
savefig.dpi: 30
axes.facecolor: k
""",
}


def drawn(folder: Path, style: str, **variables: str) -> str:
    (folder / "matplotlibrc").write_text(STYLES[style])
    result = subprocess.run(
        [sys.executable, "-c", DRAW], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_figures_are_drawn_alike_whatever_the_user_has_set_up(tmp_path: Path) -> None:
    expected = drawn(tmp_path, "plain")
    assert len(expected.split()) == 4 + 4 * 3 * 2
    assert drawn(tmp_path, "tex", MPLBACKEND="module://matplotlib_inline.backend_inline") == expected
    assert drawn(tmp_path, "loud", MPLBACKEND="Qt5Agg", LC_ALL="C", TZ="Asia/Tokyo", PYTHONHASHSEED="7") == expected


def test_a_matplotlibrc_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe")
    code = """
from gcpo_bench.errors import PrerequisiteError
try:
    import gcpo_bench.reports.plots
except PrerequisiteError as error:
    print(error, error.hint)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "matplotlib cannot be imported" in result.stdout
    assert "mend or remove your matplotlibrc" in result.stdout


def test_a_table_in_a_pipe_is_whole_whatever_the_terminal_is_said_to_be(tmp_path: Path) -> None:
    """With FORCE_COLOR and a terminal that is none, names were cut to 80 columns."""
    code = f"from gcpo_bench.cli.output import print_table\nprint_table(('a', 'b'), [('{'x' * 70}', '{'y' * 70}')])"
    for variables in ({"FORCE_COLOR": "1", "TERM": "dumb"}, {"FORCE_COLOR": "1", "TERM": "xterm"}, {"COLUMNS": "20"}):
        result = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=True
        )
        assert "x" * 70 in result.stdout
        assert "y" * 70 in result.stdout
        assert "\x1b" not in result.stdout


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="becomes another user, which takes root")
def test_a_user_without_a_home_is_told_what_to_set() -> None:
    code = """
import os, pwd
from gcpo_bench.errors import PrerequisiteError
from gcpo_bench.files import storage
os.environ.pop("HOME", None)
os.setuid(54321)
try:
    storage("data")
except PrerequisiteError as error:
    print(error.hint)
os.environ["GCPO_BENCH_HOME"] = "/somewhere"
print(storage("data"))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["set GCPO_BENCH_HOME to a folder", "/somewhere/data"]
