#!/usr/bin/env bash
# submitit takes a preemption for a time-out when the job's time limit is 10 minutes or less.
# Expected (its documentation: "max_num_timeout: maximum number of time the job can be requeued after timeout"): a job that
# was preempted after seconds of its 10 minutes has not timed out, and is queued again as often as it is preempted.
# Seen: every preemption counts as a time-out; the fourth ends the job, with max_num_timeout=3, the default. With 11 minutes
# it counts none. And on submitit's local cluster a job is started six times at most: after the sixth preemption the job is
# FINISHED, without a result and without an error of its own, whatever max_num_timeout says.
# Exits with 1 when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet submitit==1.5.4 cloudpickle==3.1.2
cat >"$folder/preempted.py" <<'PYTHON'
import os, signal, sys, time
from pathlib import Path

import submitit


class Job:
    """Sleeps; may be queued again as often as one likes."""

    def __call__(self):
        with open(os.environ["STARTS"], "a") as file:
            file.write("start\n")
        time.sleep(600)

    def checkpoint(self):
        return submitit.helpers.DelayedSubmission(self)


def task(folder):
    """The process of the job in `folder`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode()
        except OSError:
            continue
        if "submitit.core._submit" in command and str(folder) in command:
            return int(path.parent.name)
    return None


def preempted(name, minutes, **more):
    """How often the job was started when it is preempted in each start, at most eight times; its state and its error."""
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    starts = folder / "starts"
    os.environ["STARTS"] = str(starts)
    executor = submitit.AutoExecutor(folder=folder, cluster="local", **more)
    executor.update_parameters(timeout_min=minutes)
    job = executor.submit(Job())
    for number in range(1, 9):
        while not job.done() and not (starts.exists() and starts.read_text().count("start") >= number):
            time.sleep(0.1)
        if job.done():
            break
        os.kill(task(folder), signal.SIGUSR2)
    if not job.done():
        job.cancel()
        job.wait()
        return starts.read_text().count("start"), "still queued again", ""
    try:
        told = str(job.exception())
    except submitit.core.utils.UncompletedJobError as problem:
        told = str(problem)
    error = next((text for text in ("timed-out too many times", "has not produced any output") if text in told), told)
    return starts.read_text().count("start"), job.state, error


print("submitit", submitit.__version__)
short = preempted("short", 10)
print("10 minutes, preempted after a second each time:", *short)
longer = preempted("longer", 11, local_max_num_timeout=0)
print("11 minutes, no time-out allowed, likewise:", *longer)
endless = preempted("endless", 10, local_max_num_timeout=100)
print("10 minutes, 100 time-outs allowed, likewise:", *endless)
same = short[0] == 4 and short[2] == "timed-out too many times" and longer[0] == endless[0] == 6
sys.exit(not same)
PYTHON
"$folder/venv/bin/python" "$folder/preempted.py" "$folder"
