"""The run directory: the only interface between training, evaluation and reports. Only this file knows its names.

<root>/<name>/
  config.yaml          resolved and complete; reloads to the same RunConfig
  environment.json     a list, one object a (re)start
  status.json          {"state", "step", "error"}
  metrics.jsonl        one object a step, "step" strictly increasing
  train.log
  checkpoints/step-000400/   state.json in it is written last: its presence means complete
  tokens/step-000010.npz     token maps of the tracked prompts
  images/<prompt-set>/
  evaluations/<benchmark>/   samples.jsonl, scores.json
  analyses/<name>.json, .npz     what `gcpo-bench analyze` found
"""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import ValidationError

from gcpo_bench import leftovers
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import CorruptDataError, RunError, did_you_mean
from gcpo_bench.files import (
    append_jsonl,
    check_files,
    checksum,
    checksum_of,
    dump_yaml,
    has_broken_seal,
    inline_yaml,
    opened,
    parse_yaml,
    read_bytes,
    read_json,
    read_jsonl,
    reading,
    replacing,
    sealed,
    sealed_text,
    sync,
    unsealed,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from gcpo_bench.locks import Held, OnWait, held

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Run",
    "State",
    "Status",
    "WatchedRun",
    "append_jsonl",
    "check_name",
    "check_new",
    "checksum",
    "create",
    "list_runs",
    "open_run",
    "read_json",
    "read_jsonl",
    "reading",
    "replacing",
    "sync",
    "unused_name",
    "write_bytes",
    "write_json",
    "write_text",
    "writing",
]

RunName = re.compile(r"[A-Za-z0-9._-]{1,64}")
State = Literal["created", "running", "finished", "failed", "preempted", "interrupted"]
STEP_FOLDER = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class Status:
    state: State
    step: int
    """Steps done."""
    error: str = ""
    """Why it failed, one line; empty otherwise."""


@dataclass(slots=True, eq=False)
class Run:
    """One run's folder. Make it with `create` or `open_run`."""

    path: Path
    config: RunConfig
    _last_step: int | None = field(default=None, repr=False)

    @property
    def writable(self) -> bool:
        return True

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def log_path(self) -> Path:
        return self.path / "train.log"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def replace_config(self, config: RunConfig) -> None:
        """For a resume that trains longer or logs differently."""
        write_text(self.path / "config.yaml", sealed_text(dump_yaml(config.model_dump(mode="json"))))
        self.config = config

    def status(self) -> Status:
        path = self.path / "status.json"
        mend = f"mend it: gcpo-bench train --resume --name {self.name}"
        match read_json(path, mend):
            case {"state": str(state), "step": int(step), "error": str(error)} if state in get_args(State):
                return Status(state, step, error)  # type: ignore[arg-type]
            case record:
                raise CorruptDataError(f"{path} is damaged: {inline_yaml(record)} is no status", hint=mend)

    def set_status(self, state: State, step: int, error: str = "") -> None:
        """Metrics up to `step` are on the disk before it is told that the step was done."""
        sync(self.metrics_path)
        write_json(self.path / "status.json", asdict(Status(state, step, error)))

    def mended_status(self) -> Status:
        """The status; where its file is damaged or gone it is made anew from the newest checkpoint."""
        try:
            return self.status()
        except CorruptDataError:
            steps = self.checkpoint_steps()
            step = steps[-1] if steps else 0
            stopped: State = "interrupted" if steps else "created"
            self.set_status("finished" if steps and step >= self.config.num_steps else stopped, step)
            return self.status()

    def environments(self) -> list[dict[str, Any]]:
        """One record a start or resume, oldest first; see `environment.record`."""
        path = self.path / "environment.json"
        hint = "restore it from a copy; it says which weights the run began from"
        records = read_json(path, hint) if path.exists() else []
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise CorruptDataError(f"{path} is damaged: not a list of objects", hint=hint)
        return [unsealed(path, each, f"record {number}", hint) for number, each in enumerate(records, start=1)]

    def add_environment(self, record: Mapping[str, Any]) -> None:
        records = [*self.environments(), record]
        write_json(self.path / "environment.json", [sealed(each) for each in records])

    def log(self, metrics: Mapping[str, float]) -> None:
        """Append one step's metrics; on the disk's doorstep when this returns.

        Raises ValueError for a "step" that does not follow the last one and for values that are not finite.
        """
        step: Any = metrics.get("step")
        if type(step) is not int:
            raise ValueError(f'metrics need an int "step", got {step!r}')
        if self._last_step is None:
            self._last_step = len(self.metrics())
        if step != self._last_step + 1:
            raise ValueError(f"step {step} comes after step {self._last_step}; no step is left out or made twice")
        if wrong := [key for key, value in metrics.items() if not math.isfinite(value)]:
            raise ValueError(f"metrics of step {step} are not finite: {', '.join(wrong)}")
        append_jsonl(self.metrics_path, metrics)
        self._last_step = step

    def metrics(self) -> list[dict[str, Any]]:
        """One dict a step, from step 1 without a gap.

        A last line cut off by a kill is left out; anything else wrong raises CorruptDataError. So do lines that are
        gone, of steps that a checkpoint or the status tells of.
        """
        hint = "restore it from a copy, or train again under another --name"
        done = self._steps_told()  # before the lines, of which a run that goes on makes more meanwhile
        exists = self.metrics_path.exists()
        rows = read_jsonl(self.metrics_path, hint=hint) if exists else []
        for number, row in enumerate(rows, start=1):
            if type(row.get("step")) is not int or row["step"] != number:
                raise CorruptDataError(
                    f'{self.metrics_path} is damaged: line {number} has "step" {row.get("step")!r}', hint=hint
                )
        if len(rows) < done:
            what = f"ends at step {len(rows)}" if exists else "is missing"
            raise CorruptDataError(f"{self.metrics_path} {what}, and {done} steps were done", hint=hint)
        return rows

    def _steps_told(self) -> int:
        """Steps done, as checkpoints and status tell it; a failure may be that the last one could not be logged."""
        try:
            status = self.status()
            told = status.step - (status.state == "failed")
        except CorruptDataError:
            told = 0
        return max([told, *self.checkpoint_steps()])

    def truncate_metrics(self, step: int) -> None:
        """Keep the lines up to `step`, as a resume from that step's checkpoint needs it; all other bytes stay."""
        if not self.metrics_path.exists():
            return
        content = read_bytes(self.metrics_path)
        kept = b"".join(line + b"\n" for line in content.split(b"\n")[: min(step, len(self.metrics()))])
        if kept != content:
            write_bytes(self.metrics_path, kept)
        self._last_step = None

    def checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        folders = (self.path / "checkpoints").glob("step-*/state.json")
        matches = (STEP_FOLDER.fullmatch(path.parent.name) for path in folders)
        return sorted(int(match[1]) for match in matches if match)

    def weights_digest(self) -> str:
        """Checksum of the newest checkpoint's weights, as its record tells it; empty where there is none."""
        steps = self.checkpoint_steps()
        record = read_json(self.checkpoint_path(steps[-1]) / "state.json") if steps else {}
        checksums = record.get("checksums") if isinstance(record, dict) else None
        return str(checksums.get("policy.safetensors", "")) if isinstance(checksums, dict) else ""

    def save_token_maps(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        write_bytes(self.path / "tokens" / f"step-{step:06d}.npz", _archive(arrays))

    def token_maps(self) -> list[tuple[int, dict[str, np.ndarray]]]:
        """(step, arrays) in order of step."""
        paths = {path: STEP_FOLDER.fullmatch(path.stem) for path in (self.path / "tokens").glob("step-*.npz")}
        steps = sorted((int(match[1]), path) for path, match in paths.items() if match)
        return [(step, _load_arrays(path)) for step, path in steps]

    def images_dir(self, prompt_set: str) -> Path:
        """Where a prompt set's images go; made by whoever writes there first."""
        return self.path / "images" / prompt_set

    def evaluation_dir(self, benchmark: str) -> Path:
        """Where a benchmark's samples.jsonl and scores.json go; made by whoever writes there first."""
        return self.path / "evaluations" / benchmark

    def save_analysis(self, name: str, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
        """Write `analyses/<name>.npz`, then `.json`; returns the latter's path."""
        path = self.path / "analyses" / f"{name}.json"
        data = _archive(arrays)
        with held(path.with_suffix(".lock"), on_wait=lambda owner: None):  # the two files belong together
            write_bytes(path.with_suffix(".npz"), data)
            write_json(path, {**record, "checksums": {f"{name}.npz": checksum_of(data)}})
        return path

    def analyses(self) -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
        """name -> (record, arrays)."""
        found = {}
        mend = "analyze the run again; gcpo-bench analyze --help shows how"
        for path in sorted((self.path / "analyses").glob("*.json")):
            record = read_json(path, mend)
            if not isinstance(record, dict):
                raise CorruptDataError(f"{path} is damaged: not an analysis", hint=mend)
            check_files(path.parent, record.pop("checksums", {}), mend)
            found[path.stem] = (record, _load_arrays(path.with_suffix(".npz"), mend))
        return found

    def write_text_atomic(self, relative: str, text: str) -> None:
        write_text(self.path / relative, text)

    def is_empty(self) -> bool:
        """Nothing was trained yet: no step, and no checkpoint of the start."""
        return not self.checkpoint_steps() and not self.metrics()

    def discard(self) -> bool:
        """Remove the folder if the run is empty, so that its name is free again; whether it was."""
        if empty := self.is_empty():
            # renamed first: a kill in between leaves no half a run under its name
            shutil.rmtree(self.path.rename(leftovers.temporary_folder(self.path)), ignore_errors=True)
        return empty

    def remove_leftovers(self) -> None:
        """Files and checkpoints that killed processes had begun, for who holds the run."""
        leftovers.remove_files(self.path)
        for folder in (self.path / "checkpoints").glob("step-*"):
            if not (folder / "state.json").exists():
                shutil.rmtree(folder, ignore_errors=True)

    def is_in_use(self) -> bool:
        """Whether another process trains it now."""
        lock = self.path / "run.lock"
        try:
            with held(lock) if lock.exists() else nullcontext():
                return False
        except Held:
            return True

    @contextmanager
    def lock(self, on_wait: OnWait | None = None) -> Iterator[None]:
        """Hold the run for this process; a killed one holds nothing.

        Raises RunError where another process holds it, unless `on_wait` is given: then it is waited for.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(held(self.path / "run.lock", on_wait=on_wait))
            except Held as holder:
                raise RunError(
                    f"{self.path} is in use: {holder} is training it",
                    hint="wait for it or stop it, or choose another --name",
                ) from None
            yield


class WatchedRun(Run):
    """A run that another process writes: what would be written here is not."""

    __slots__ = ()

    @property
    def writable(self) -> bool:
        return False

    @property
    def log_path(self) -> Path:
        return Path(os.devnull)

    def set_status(self, state: State, step: int, error: str = "") -> None:
        pass

    def add_environment(self, record: Mapping[str, Any]) -> None:
        pass

    def log(self, metrics: Mapping[str, float]) -> None:
        pass

    def truncate_metrics(self, step: int) -> None:
        pass

    def remove_leftovers(self) -> None:
        pass

    def save_token_maps(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        pass

    @contextmanager
    def lock(self, on_wait: OnWait | None = None) -> Iterator[None]:
        yield


BAD_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
    OverflowError,
)
"""What is raised on a file that is no .npz, or on one that was cut off, altered or pickled."""


def _archive(arrays: Mapping[str, np.ndarray]) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


MAX_ARRAY_BYTES = 8_000_000_000
"""Of one archive, unpacked; more is no study of images."""


def _load_arrays(path: Path, mend: str = "delete it; the report then leaves that step out") -> dict[str, np.ndarray]:
    try:
        with reading(path, mend), opened(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if (claimed := sum(member.file_size for member in members)) > MAX_ARRAY_BYTES:
                raise ValueError(f"it claims to hold {claimed:,} bytes")
            return {member.filename.removesuffix(".npy"): _load_array(archive, member) for member in members}
    except BAD_ARCHIVE as error:
        raise CorruptDataError(f"{path} is damaged: {error}", hint=mend) from error


def _load_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array of an .npz. numpy's own reader asks for as much memory as a header claims, before it looks for it."""
    import numpy as np

    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is packed in another way")
    data = io.BytesIO(archive.read(member))
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError(f"{member.filename} is of another version")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(data)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds objects, not numbers")
    held = bytearray(data.read())
    if (claimed := math.prod(shape) * dtype.itemsize) != len(held):
        raise ValueError(f"{member.filename} claims {claimed:,} bytes, and has {len(held):,}")
    return np.ndarray(shape, dtype, held, order="F" if is_fortran else "C")


def check_name(name: str) -> None:
    """Raises RunError for a name that is no plain folder name."""
    if not RunName.fullmatch(name) or name in {".", ".."}:
        raise RunError(
            f"run name {name!r} cannot be used",
            hint="use 1 to 64 letters, digits, '.', '_' or '-' in --name; choose the folder with --runs-dir",
        )


def check_new(root: Path, name: str) -> Path:
    """Where a new run would go. Raises RunError for a bad name or one that is taken."""
    check_name(name)
    path = root / name
    if path.exists() or path.is_symlink():
        raise _taken(path)
    return path


def create(root: Path, name: str, config: RunConfig) -> Run:
    """A new run, complete at once or not there at all.

    Raises RunError for a bad name or one that is taken, PrerequisiteError where `root` cannot be written.
    """
    path = check_new(root, name)
    with writing(root):
        leftovers.remove_folders(root)
        try:
            with leftovers.folder_for(path) as building:
                run = Run(building, config)
                run.replace_config(config)
                run.set_status("created", 0)
                building.rename(path)
        except OSError:
            if path.exists():
                raise _taken(path) from None  # another process was faster
            raise
    return Run(path, config)


def create_unused(root: Path, stem: str, config: RunConfig) -> Run:
    """A new run under `stem`, `stem-2`, ...: the first name that no other process takes. Raises else as `create`."""
    while True:
        name = unused_name(root, stem)
        try:
            return create(root, name, config)
        except RunError:
            if not (root / name).exists():
                raise


def open_or_create(root: Path, name: str, config: RunConfig) -> Run:
    """The run of this name, made with `config` where there is none, also by another process at the same time."""
    path = root / name
    if not path.is_dir():
        try:
            return create(root, name, config)
        except RunError:
            if not path.is_dir():
                raise
    return open_run(path, root)


def _taken(path: Path) -> RunError:
    return RunError(
        f"{path} exists already", hint=f"continue it with --resume --name {path.name}, or choose another --name"
    )


def open_run(path_or_name: str | Path, root: Path = Path("runs")) -> Run:
    """An existing run, by its name in `root` or by its path.

    Raises RunError where there is none, CorruptDataError where the folder is no run or its config.yaml is damaged.
    """
    candidates = [Path(path_or_name)]
    if isinstance(path_or_name, str) and RunName.fullmatch(path_or_name) and path_or_name not in {".", ".."}:
        candidates.insert(0, root / path_or_name)
    path = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if path is None:
        known = [run.name for run in list_runs(root)]
        hint = did_you_mean(str(path_or_name), known) if known else "train one first: gcpo-bench train"
        raise RunError(f"no run {str(path_or_name)!r} in {root}", hint=hint)
    return Run(path.resolve() if path.name in {"", "."} else path, _read_config(path))


def _read_config(folder: Path) -> RunConfig:
    path = folder / "config.yaml"
    with reading(path):
        exists = path.exists()
    if not exists:
        raise CorruptDataError(f"{folder} is not a run: it has no config.yaml", hint="name a run: gcpo-bench ls runs")
    hint = "restore it from a copy; without it the run cannot be trusted"
    data = read_bytes(path, hint)
    with reading(path, hint):
        text = data.decode("utf-8").replace("\r\n", "\n")
    if has_broken_seal(text):
        raise CorruptDataError(
            f"{path} was changed after it was written, and the run was made with what stood there before",
            hint=f"restore it; or train a new run with it: gcpo-bench train --preset {path} --name NAME",
        )
    try:
        values = parse_yaml(text, stored=True)
        if not isinstance(values, dict):
            raise ValueError("it is no mapping of keys to values")
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise CorruptDataError(f"{path} is damaged: {problems}", hint=hint) from error
    except ValueError as error:
        raise CorruptDataError(f"{path} is damaged: {error}", hint=hint) from error


def list_runs(root: Path) -> list[Path]:
    """Folders in `root` that hold a run, by name; they may still be damaged inside. Empty where `root` is missing.

    Those that cannot be looked into count: whether they hold one cannot be told, and opening them says why.
    """
    if not root.is_dir():
        return []
    with reading(root):
        folders = [path for path in root.iterdir() if RunName.fullmatch(path.name)]
    return sorted(path for path in folders if _has_config(path))


def _has_config(folder: Path) -> bool:
    try:
        return (folder / "config.yaml").exists()
    except OSError:
        return True


def unused_name(root: Path, stem: str) -> str:
    """`stem`, or `stem-2`, `stem-3`, ...: the first that `root` does not have."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", stem)[:56]
    number = 1
    while (root / (name := stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return name


def first_weights(environments: Iterable[Mapping[str, Any]]) -> str:
    """Checksum of the weights that training began from, out of a run's records; empty where none holds it."""
    return next((str(found) for record in environments if (found := record.get("start_weights"))), "")
