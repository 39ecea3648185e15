"""Pipes, devices, closed folders, names that are no text: nothing hangs, and all is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gcpo_bench import runs
from gcpo_bench.cli.output import visible
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import CorruptDataError
from gcpo_bench.files import parse_yaml

from .conftest import Cli
from .run_factory import make_run

WITHOUT_POWERS = [
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
]
"""A superuser may read everything; so it is started without that power."""
HANGS_S = 240
"""Only a command that never ends takes so long."""
READ_BY_ALL = ("config.yaml", "status.json", "metrics.jsonl")


def command(folder: Path, *arguments: str) -> tuple[int, str, str]:
    powers = WITHOUT_POWERS if os.geteuid() == 0 and shutil.which("setpriv") else []
    words = [*powers, sys.executable, "-m", "gcpo_bench", *arguments]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=HANGS_S, errors="backslashreplace")
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", [*READ_BY_ALL, "environment.json", "evaluations/scenes/scores.json"])
def test_a_file_that_never_ends_is_named_by_every_reader(tmp_path: Path, name: str, kind: str) -> None:
    make_run(tmp_path / "runs", "good", seed=1, steps=2, maps=False, prompts_per_task=2, draw=False)
    bad = make_run(tmp_path / "runs", "bad", steps=2, maps=False, prompts_per_task=2, draw=False)
    path = bad.path / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    code, out, err = command(tmp_path, "ls", "runs")
    assert code == 0, err
    assert "good" in out
    if name != "environment.json":  # the one that `ls` does not read
        assert "damaged" in out
    code, _, err = command(tmp_path, "report", "--format", "md")
    assert code == 0, err
    assert f"bad is left out: {name} is missing or not a file" in (tmp_path / "report/report.md").read_text()


@pytest.mark.parametrize("option", ["--preset", "--plan"])
def test_yaml_that_never_ends_is_refused(tmp_path: Path, option: str) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    verb = "train" if option == "--preset" else "ablate"
    code, _, err = command(tmp_path, verb, option, "a.yaml", "--dry-run")
    assert code == 2
    assert "it is no plain file" in err


def test_a_closed_folder_of_a_colleague_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "mine", steps=2, maps=False, prompts_per_task=2, draw=False)
    make_run(tmp_path / "runs", "theirs", seed=1, steps=2, maps=False, prompts_per_task=2, draw=False)
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("a superuser may read everything")
    theirs = tmp_path / "runs/theirs"
    theirs.chmod(0)
    try:
        code, out, err = command(tmp_path, "ls", "runs")
        assert (code, "Traceback" in err) == (0, False), err
        assert "mine" in out
        assert "Permission denied" in out
        for words in (("report", "--format", "md"), ("baseline", "update", "--out", "b.json")):
            code, _, err = command(tmp_path, *words)
            assert code == 0, err
        code, _, err = command(tmp_path, "train", "--resume")
        assert code == 2
        assert "passing over runs/theirs" in err
        code, _, err = command(tmp_path, "report", "theirs")
        assert code == 4
        assert "Permission denied" in err
    finally:
        theirs.chmod(0o777)


def test_names_that_are_too_long_or_no_text_are_named(cli: Cli, tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "a", steps=2, maps=False, prompts_per_task=2, draw=False)
    for words in (("report", "a", "--out", "x" * 300), ("report", "y" * 300), ("ls", "runs", "--runs-dir", "z" * 300)):
        refused = cli(*words)
        assert refused.code in (0, 2, 4), refused.err
        assert "internal error" not in refused.err
    for more in (("report", "\udcff"), ("train", "--name", "\udcff"), ("report", "a", "--out", "\udcff")):
        answer = cli(*more)
        assert answer.code in (0, 2, 4), answer.err
        assert "internal error" not in answer.err


def test_an_archive_that_claims_gigabytes_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a", RunConfig())
    run.save_token_maps(1, {"entropy": np.zeros(8)})
    path = run.path / "tokens" / "step-000001.npz"
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (4_000_000_000,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("entropy.npy", header.getvalue())
    with pytest.raises(CorruptDataError, match="claims 32,000,000,000 bytes, and has 0"):
        run.token_maps()


def test_what_would_steer_a_terminal_is_written_out(cli: Cli, tmp_path: Path) -> None:
    assert visible("a\x1b[31mb\u202ec\nd é \udcff") == "a\\x1b[31mb\\u202ec\nd é \\udcff"
    run = make_run(tmp_path / "runs", "a", steps=2, maps=False, evaluated=False)
    run.set_status("failed", 2, "the server answers \x1b]0;owned\x07")
    assert "\x1b" not in cli("report", "a").err
    assert "\x1b" not in cli("train", "--resume", "--name", "a", "-o", "x\x1b[31m=1").err


def test_keys_of_a_map_are_compared_once_each() -> None:
    count = 20_000
    compared = 0

    class Key(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    import yaml

    from gcpo_bench.files import _PlainLoader

    nodes = [
        (yaml.ScalarNode("tag:yaml.org,2002:str", Key(f"k{number}")), yaml.ScalarNode("tag:yaml.org,2002:str", "v"))
        for number in range(count)
    ]
    mark = yaml.Mark("", 0, 0, 0, None, 0)
    for key, _ in nodes:
        key.start_mark = mark
    loader = _PlainLoader("")
    assert len(loader.construct_mapping(yaml.MappingNode("tag:yaml.org,2002:map", nodes))) == count
    assert compared < 3 * count
    with pytest.raises(ValueError, match="a key is no single value"):
        parse_yaml("? [a]\n: 1\n")


def test_a_copied_run_folder_is_read_like_the_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "a", steps=2, maps=False, evaluated=False)
    shutil.copytree(run.path, tmp_path / "copy")
    assert runs.open_run(tmp_path / "copy").metrics() == run.metrics()
