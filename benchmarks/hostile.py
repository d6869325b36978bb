"""Files that nobody should trust, given to everything that reads files.

    python -m benchmarks.hostile [--inputs N] [--seed S] [--only KIND …] [--save]

Takes honest checkpoints, `.pth`, `.npy`, YAML, idx, `.mat`, USPS text, images, archives, rank tables and
exported models (benchmarks/hostile_files.py), cuts them, flips bits, puts in other numbers, repeats and
inserts parts, extends them to 3 GB, and adds files that were made on purpose, such as archives with paths
that lead outside. Each must be read or refused with one line, within 10 s and 1 GB of what the honest file
needs, and nothing may be written outside the output folder. Seconds are those of the processor, so that other
programs do not count; a reader that has not ended after two minutes hangs. The readers run in a process of
their own, which is begun anew if it dies. Prints a table and every defect, with the file that shows it;
status 2 if there is one. `--save` keeps the table in benchmarks/results/devices/hostile.json.
"""

import argparse
import collections
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import hostile_files, positive
from benchmarks.measure import resident
from model_utils import cli
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError

KEPT = ROOT / "benchmarks" / "results" / "devices" / "hostile.json"
SECONDS, MEGABYTES = 10, 1024  # more than the honest file needs
HANGS = 120  # seconds
FOLDERS = ("home", "temporary", "cache", "input", "output")


# The process that reads


def serve():
    """Read jobs {"kind", "path", "output"} as lines of JSON, answer each with what came of it."""
    from model_utils.errors import UserError
    from src.data.decode import Unreadable

    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        job = json.loads(line)
        read = hostile_files.KINDS[job["kind"]][2]
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
        before, begun = resident("VmRSS"), time.process_time()
        try:
            read(Path(job["path"]), Path(job["output"]))
            outcome = "read"
        except (UserError, Unreadable) as refusal:
            outcome = "refused" if "\n" not in str(refusal) else f"several lines: {refusal}"
        except BaseException as error:
            outcome = f"traceback: {type(error).__name__}: {error}"[:300]
        answer = {"outcome": outcome, "seconds": time.process_time() - begun}
        answer["megabytes"] = max(0.0, resident("VmHWM") - before)
        os.write(answers, json.dumps(answer).encode() + b"\n")


def make(kind, path):
    """Write the honest file of a kind, and beside it what belongs to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(hostile_files.KINDS[kind][0](path.parent))


class Reader:
    """The process that reads, in a folder of its own that stands for the user's machine."""

    def __init__(self, folder):
        self.folder, self.process = folder, None
        for name in FOLDERS:
            (folder / name).mkdir(exist_ok=True)

    def _start(self):
        settings = {"HOME": "home", "TMPDIR": "temporary", "XDG_CACHE_HOME": "cache"}
        settings = {name: str(self.folder / place) for name, place in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.hostile", "--serve"],
            cwd=ROOT,
            env={**os.environ, **settings, "DA_CPU_OPS": "0", "GLOG_v": "4"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(self.folder / "printed.log", "a"),  # noqa: SIM115 - as long as the process
        )

    def read(self, kind, path):
        """{"outcome", "seconds", "megabytes"} of one file, and "written": what it touched elsewhere."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        before = outside(self.folder, path)
        job = {"kind": kind, "path": str(path), "output": str(self.folder / "output")}
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        answer = self._answer()
        written = changed(before, outside(self.folder, path))
        for entry in (self.folder / "output").iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return {**answer, "written": written}

    def _answer(self):
        ready, _, _ = select.select([self.process.stdout], [], [], HANGS)
        if not ready:
            self.close()
            return {"outcome": f"hangs for {HANGS} s", "seconds": HANGS, "megabytes": 0}
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            name = signal.Signals(-status).name if status < 0 else f"status {status}"
            return {"outcome": f"dies: {name}", "seconds": 0, "megabytes": 0}
        return json.loads(line)

    def close(self):
        """End the process."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def outside(folder, *but):
    """{file: (size, time of its last change)} of a user's machine, without its output, its log and `but`."""
    found = {}
    for place in (*folder.rglob("*"), Path("/tmp/escaped"), ROOT / "escaped"):
        own = place.is_relative_to(folder / "output") or place in (*but, folder / "printed.log")
        if not own and place.is_file():
            state = place.stat()
            found[str(place)] = (state.st_size, state.st_mtime_ns)
    return found


def changed(before, after):
    """The files that differ between two answers of `outside`."""
    return sorted({name for name, _ in set(before.items()) ^ set(after.items())})


# The inputs


def inputs(kinds, honest, count, rng, special=hostile_files.MADE_ON_PURPOSE):
    """Yield `count` × (kind, bytes, size to extend to, what was done): first those made on purpose.

    Args:
        honest: {kind: bytes}. rng: numpy Generator. special: {kind: those made on purpose}.
    """
    made = [(kind, *one) for kind in kinds for one in special.get(kind, ())][:count]
    for kind, what, make_bytes in made:
        yield kind, make_bytes(), 0, what
    for number in range(count - len(made)):
        kind = kinds[number % len(kinds)]
        yield kind, *hostile_files.damaged(honest[kind], rng)


def defect(answer, usual):
    """What is wrong with an answer, in words; None if nothing is. usual: the answer to the honest file."""
    if answer["outcome"] not in ("read", "refused"):
        return answer["outcome"]
    if answer["seconds"] > usual["seconds"] + SECONDS:
        return f"takes {answer['seconds']:.0f} s, the honest file {usual['seconds']:.1f} s"
    if answer["megabytes"] > usual["megabytes"] + MEGABYTES:
        return f"takes {answer['megabytes']:.0f} MB, the honest file {usual['megabytes']:.0f} MB"
    return f"writes {answer['written'][0]}" if answer["written"] else None


def place_of(kind, folder):
    """Where the file of a kind lies in a reader's folder."""
    return folder / "input" / kind.replace(" ", "-") / hostile_files.KINDS[kind][1]


def attack(kinds, count, rng, folder):
    """([answers with "kind", "what", "defect"], {kind: answer to the honest file})."""
    subprocess.run(
        [sys.executable, "-m", "benchmarks.hostile", "--make", str(folder), *kinds],
        cwd=ROOT,
        env={**os.environ, "DA_CPU_OPS": "0"},
        check=True,
    )
    reader, honest, usual, answers = Reader(folder), {}, {}, []
    try:
        for kind in kinds:
            honest[kind] = place_of(kind, folder).read_bytes()
            reader.read(kind, place_of(kind, folder))  # the first time imports what it needs
            usual[kind] = reader.read(kind, place_of(kind, folder))
            if usual[kind]["outcome"] != "read" or usual[kind]["written"]:
                raise UserError(f"the honest file of kind {kind} was not read: {usual[kind]}")
        for kind, content, size, what in inputs(kinds, honest, count, rng):
            path = place_of(kind, folder)
            write(path, content, size)
            answer = {"kind": kind, "what": what, **reader.read(kind, path)}
            answer["defect"] = defect(answer, usual[kind])
            if answer["defect"]:
                print(f"defect: {kind}, {what}: {answer['defect']}", flush=True)
                keep(content, size, f"{len(answers):03d}-{path.name}", folder.parent)
            answers.append(answer)
            path.write_bytes(honest[kind])
    finally:
        reader.close()
    return answers, usual


def write(path, content, size):
    """Write a file and extend it to `size`, without taking room on the disk."""
    path.write_bytes(content)
    if size > len(content):
        os.truncate(path, size)


def keep(content, size, name, folder):
    """Leave a file that showed a defect in the folder `hostile-defects` of `folder`."""
    place = folder / "hostile-defects"
    place.mkdir(exist_ok=True)
    write(place / name, content, size)
    print(f"  kept as {place / name}", flush=True)


def summary(answers, usual):
    """{kind: {inputs, read, refused, defects, most seconds and megabytes above the honest file's}}."""
    groups = collections.defaultdict(list)
    for answer in answers:
        groups[answer["kind"]].append(answer)
    return {
        kind: {
            "inputs": len(rows),
            "read": sum(row["outcome"] == "read" for row in rows),
            "refused": sum(row["outcome"] == "refused" for row in rows),
            "defects": sum(row["defect"] is not None for row in rows),
            "seconds": round(max(max(0, row["seconds"] - usual[kind]["seconds"]) for row in rows), 1),
            "megabytes": round(max(max(0, row["megabytes"] - usual[kind]["megabytes"]) for row in rows)),
        }
        for kind, rows in groups.items()
    }


def table(rows):
    """The summary as lines of a Markdown table."""
    lines = ["| file | inputs | read | refused | defects | most s more | most MB more |", "|---" * 7 + "|"]
    names = ("inputs", "read", "refused", "defects")
    every = {name: sum(row[name] for row in rows.values()) for name in names}
    every |= {name: max(row[name] for row in rows.values()) for name in ("seconds", "megabytes")}
    rows = {**rows, "all": every}
    return lines + [f"| {kind} | {' | '.join(map(str, row.values()))} |" for kind, row in rows.items()]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=positive, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="KIND")
    parser.add_argument("--save", action="store_true", help="keep the table")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    if arguments.make:
        folder, *kinds = arguments.make
        for kind in kinds:
            make(kind, place_of(kind, Path(folder)))
        return 0
    unknown = [kind for kind in arguments.only or () if kind not in hostile_files.KINDS]
    if unknown:
        raise UserError(f"only: there is no kind {unknown[0]!r}; there are {', '.join(hostile_files.KINDS)}")
    kinds = arguments.only or list(hostile_files.KINDS)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        answers, usual = attack(kinds, arguments.inputs, np.random.default_rng(arguments.seed), Path(folder))
    rows = summary(answers, usual)
    print("\n".join(table(rows)))
    if arguments.save:
        command = f"python -m benchmarks.hostile --inputs {arguments.inputs} --seed {arguments.seed}"
        content = {"command": command, "seconds": round(time.monotonic() - begun), "kinds": rows}
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        with atomic(KEPT) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return judge(answers)


def judge(answers):
    """0; UserError if an answer shows a defect."""
    found = [answer for answer in answers if answer["defect"]]
    if found:
        raise UserError(f"{len(found)} of {len(answers)} inputs show a defect; they stand above")
    return 0


if __name__ == "__main__":
    cli.run(main)
