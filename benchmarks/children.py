"""Commands of this repository side by side, each on a share of the cores."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from model_utils import child
from model_utils.config import ROOT
from model_utils.errors import UserError


def run(words, folder, cores):
    """Run `python` with these words; what it prints goes to `folder`/printed.log.

    Args:
        words: e.g. ["train.py", "--seed=1"]. folder: a Path, made if need be.
        cores: set of processors it may use.

    Raises:
        UserError: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "printed.log", "w", encoding="utf-8") as log:
        status = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(len(cores))},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        ).returncode
    if status:
        line = " ".join(["python", *words])
        raise UserError(f"{line} left with status {status}; see {folder / 'printed.log'}")


def captured(words):
    """What `python` with these words prints: (standard output, standard error).

    Raises:
        UserError: it failed; the message is the last line it printed.
    """
    # Importing MindSpore sets OMP_NUM_THREADS=1 behind Python's back, which a child would inherit: given
    # explicitly, the environment is the one that this program was started with.
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"{' '.join(words)} failed"]
        raise UserError(lines[-1].removeprefix("error: "))
    return done.stdout, done.stderr


def train(words, given, folder, cores):
    """The content of result.json of a run of train.py, new or finished before.

    Args:
        words: arguments that say what is trained. given: those that say where things are on this machine.
        folder: of the run, a Path. cores: set of processors it may use.

    Raises:
        UserError: it failed, or the folder holds the run of other words.
    """
    path, about = folder / "result.json", folder / "command.json"
    line = " ".join(["python", "train.py", *words])
    if path.is_file():
        known = json.loads(about.read_text(encoding="utf-8"))
        if known != line:
            raise UserError(f"{folder} holds the run of another command ({known}); give another --folder")
        return json.loads(path.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps(line), encoding="utf-8")
    resume = ["--resume=true"] if (folder / "checkpoints").is_dir() else []  # it was interrupted
    run(["train.py", *words, *given, f"--output_dir={folder}", "--report=false", *resume], folder, cores)
    return json.loads(path.read_text(encoding="utf-8"))


def side_by_side(job, tasks, workers):
    """[job(task, cores)] of all tasks in their order, `workers` at a time."""
    every = os.sched_getaffinity(0)
    free = [cores or every for cores in child.shares(workers)]

    def one(task):
        cores = free.pop()
        try:
            return job(task, cores)
        finally:
            free.append(cores)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, tasks))
