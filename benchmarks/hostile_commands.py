"""Files that nobody should trust, given to the commands: python -m benchmarks.hostile_commands [--inputs N]

As benchmarks/hostile.py does with the readers, but each input goes through a whole command as a user starts
it: train.py --config, --pretrained and --resume, eval.py, export.py, infer.py, sweep.py, create_mnistm.py. A
command must end with status 0 or 2; with status 2 it says one line. It may take 10 s of the processor and
1 GB more than with the honest file, and write nothing outside its output folder. Commands start in a fork of
a process that has imported MindSpore (tests/command_server.py), so memory counts from there. `--save` keeps
the table in benchmarks/results/devices/hostile_commands.json. Needs the packages of the tests.
"""

import argparse
import gzip
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import hostile, hostile_files, positive
from model_utils import cli
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError

KEPT = hostile.KEPT.with_name("hostile_commands.json")
FOLDERS = (*hostile.FOLDERS, "here", "world")
CONFIG = ROOT / "tests" / "tiny" / "supervised.yaml"
# What a damaged configuration might make long is said on the command line.
QUICK = [
    "--mode=pynative",
    "--train_iterations=6",
    "--save_checkpoint_steps=2",
    "--batch_size=16",
    "--eval_batch_size=300",
    "--validation_size=20",
    "--report=false",
    "--tensorboard=false",
    "--device_target=CPU",
]
SWEEP = [
    "sweep.py",
    f"--config={ROOT / 'tests' / 'tiny' / 'mcc.yaml'}",
    "--trials=1",
    "--iterations=2",
    "--mode=pynative",
    "--device_target=CPU",
]
HANGS = 600  # seconds, on a machine that others use as well
# What infer.py says on standard error besides: the model, each file that it leaves out, how many were read.
INFORMATION = re.compile(r"warning: |\S+: (onnxruntime|MindSpore) |\d+ images in ")
PHOTOS = "BSR/BSDS500/data/images/train/"


# Honest files. `world` has what the commands themselves made.


def make_files(world):
    """Write a photograph, archives of photographs, a space of a sweep, MNIST."""
    photo = hostile_files.an_image(world)
    (world / "photo.jpg").write_bytes(photo)
    (world / "space.yaml").write_bytes(hostile_files.HONEST_SPACE)
    members = [(f"{PHOTOS}{number}.jpg", photo) for number in range(3)]
    (world / "photos.zip").write_bytes(hostile_files.zip_of(members))
    tar = hostile_files.tar_of([(*member, tarfile.REGTYPE) for member in members])
    (world / "photos.tgz").write_bytes(gzip.compress(tar))
    make_mnist(world / "mnist")


def make_runs(run, world, cases):
    """Train, export, sweep, as far as the cases need it; run: function of the words of a command."""
    if all(CASES[case][0] is None or (world / CASES[case][0]).is_file() for case in cases):
        return
    run(["train.py", f"--config={CONFIG}", *QUICK, f"--output_dir={world / 'run'}"])
    for form in ("ONNX", "MINDIR"):
        name = f"--file_name={world / 'net'}"
        run(
            [
                "export.py",
                f"--ckpt_file={world / 'run'}",
                f"--file_format={form}",
                name,
                "--device_target=CPU",
            ]
        )
    run([*SWEEP, f"--space={world / 'space.yaml'}", f"--output_dir={world / 'sweep'}"])


def make_mnist(folder):
    """Four small files of MNIST."""
    from src.data import idx, mnist

    folder.mkdir()
    for images, labels in mnist.FILES.values():
        for name, array in ((images, np.zeros((20, 28, 28), np.uint8)), (labels, np.arange(20) % 10)):
            content = idx.header(array.shape) + array.astype(np.uint8).tobytes()
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))


# Each case: (file of the world, what it becomes, words of the command, kind of those made on purpose). A file
# that becomes "output/…" is damaged where the command goes on from it: its folder is copied there before.


def _train(*more):
    return ["train.py", f"--config={CONFIG}", *QUICK, "--output_dir={output}/run", *more]


def _infer(*more):
    return ["infer.py", "--device_target=CPU", "--csv={output}/a.csv", *more]


def _mnistm(photos, mnist):
    return ["create_mnistm.py", f"--bst_path={photos}", f"--mnist_dir={mnist}", "--mnistm_dir={output}/m"]


EXPORT = ["--file_format=ONNX", "--file_name={output}/net", "--device_target=CPU"]
SPACE = "--space={world}/space.yaml"
STEP = "run/checkpoints/step-00000006.ckpt"
CASES = {
    "train.py --config": (
        None,
        "input/bad.yaml",
        ["train.py", "--config={file}", *QUICK, "--output_dir={output}/run"],
        "yaml",
    ),
    "train.py --pretrained": ("run/network.ckpt", "input/bad.ckpt", _train("--pretrained={file}"), ""),
    "train.py --resume, checkpoint": (STEP, f"output/{STEP}", _train("--resume=true"), ""),
    "train.py --resume, metrics": (
        "run/metrics.jsonl",
        "output/run/metrics.jsonl",
        _train("--resume=true"),
        "",
    ),
    "eval.py --ckpt_path": (
        "run/network.ckpt",
        "input/bad.ckpt",
        ["eval.py", "--ckpt_path={file}", "--result={output}/a.json", "--device_target=CPU"],
        "",
    ),
    "export.py --ckpt_file": (
        "run/network.ckpt",
        "input/bad.ckpt",
        ["export.py", "--ckpt_file={file}", *EXPORT],
        "",
    ),
    "infer.py --model .ckpt": (
        "run/network.ckpt",
        "input/bad.ckpt",
        _infer("--model={file}", "{world}/photo.jpg"),
        "",
    ),
    "infer.py --model .onnx": (
        "net.onnx",
        "input/bad.onnx",
        _infer("--model={file}", "{world}/photo.jpg"),
        "",
    ),
    "infer.py --model .mindir": (
        "net.mindir",
        "world/net.mindir",
        _infer("--model={file}", "{world}/photo.jpg"),
        "",
    ),
    "infer.py, .mindir.json": (
        "net.mindir.json",
        "world/net.mindir.json",
        _infer("--model={world}/net.mindir", "{world}/photo.jpg"),
        "mindir.json",
    ),
    "infer.py --images": (
        "photo.jpg",
        "input/bad.jpg",
        _infer("--model={world}/net.onnx", "--images", "{file}", "{world}/photo.jpg"),
        "image",
    ),
    "sweep.py --space": (
        "space.yaml",
        "input/space.yaml",
        [*SWEEP, "--space={file}", "--output_dir={output}/sweep"],
        "space",
    ),
    "sweep.py, storage": (
        "sweep/sweep.db",
        "output/sweep/sweep.db",
        [*SWEEP, SPACE, "--output_dir={output}/sweep"],
        "",
    ),
    "create_mnistm.py .tgz": ("photos.tgz", "input/bad.tgz", _mnistm("{file}", "{world}/mnist"), "tar"),
    "create_mnistm.py .zip": ("photos.zip", "input/bad.zip", _mnistm("{file}", "{world}/mnist"), "zip"),
    "create_mnistm.py, MNIST": (
        "mnist/train-images-idx3-ubyte.gz",
        "world/mnist/train-images-idx3-ubyte.gz",
        _mnistm("{world}/photos.tgz", "{world}/mnist"),
        "idx",
    ),
}


# Running


class Commands:
    """A user's machine in a folder, and the commands that run on it."""

    def __init__(self, folder):
        self.folder = folder
        for name in FOLDERS:
            (folder / name).mkdir()
        places = {"HOME": "home", "TMPDIR": "temporary", "XDG_CACHE_HOME": "cache"}
        self.environment = {name: str(folder / place) for name, place in places.items()}

    def run(self, words):
        """The command's CompletedProcess, with `seconds` and `megabytes`; None if it hangs."""
        from tests import helpers

        program, *rest = words
        try:
            return helpers.forked(
                [str(ROOT / program), *rest],
                cwd=self.folder / "here",
                timeout=HANGS,
                DA_CPU_OPS="0",
                **self.environment,
            )
        except subprocess.TimeoutExpired:
            return None

    def honest(self, words):
        """Run a command that must succeed."""
        done = self.run(words)
        if done is None or done.returncode:
            raise UserError(f"{' '.join(words)} failed: {done and done.stderr[-300:]}")

    def place(self, case):
        """Where the file of a case lies."""
        return self.folder / CASES[case][1]

    def answer(self, case, content, size):
        """{"outcome", "seconds", "megabytes", "written"} of a command that is given these bytes."""
        source, target, words, _ = CASES[case]
        path = self.place(case)
        if target.startswith("output/"):
            name = source.split("/")[0]
            shutil.copytree(self.folder / "world" / name, self.folder / "output" / name)
        kept = path.read_bytes() if target.startswith("world/") else None
        hostile.write(path, content, size)
        where = {"file": path, "output": self.folder / "output", "world": self.folder / "world"}
        before = hostile.outside(self.folder)
        done = self.run([word.format(**where) for word in words])
        written = hostile.changed(before, hostile.outside(self.folder))
        shutil.rmtree(self.folder / "output")
        (self.folder / "output").mkdir()
        if kept is not None:
            path.write_bytes(kept)
        if done is None:
            return {
                "outcome": f"hangs for {HANGS} s",
                "seconds": 0,
                "megabytes": 0,
                "written": written,
            }
        used = {"seconds": done.seconds, "megabytes": done.megabytes, "written": written}
        return {"outcome": outcome(done), **used}


def outcome(done):
    """ "read" or "refused", or what is wrong with how a command ended, in words."""
    lines = done.stderr.splitlines()
    if "Traceback" in done.stderr + done.stdout:
        return f"traceback: {lines[-1] if lines else done.stdout[-200:]}"[:300]
    if done.returncode == 0:
        return "read"
    if done.returncode != 2:
        return f"status {done.returncode}: {lines[-1] if lines else ''}"[:300]
    told = [line for line in lines if not INFORMATION.match(line)]
    if len(told) != 1 or told != lines[-1:] or not told[0].startswith("error: "):
        return f"{len(lines)} lines: {done.stderr}"[:300]
    return "refused"


def attack(cases, count, rng, folder, until):
    """([answers with "kind", "what", "defect"], {case: answer to the honest file}).

    until: no further input is begun after this `time.monotonic()`.
    """
    commands, usual, answers = Commands(folder), {}, []
    make_files(folder / "world")
    make_runs(commands.honest, folder / "world", cases)
    honest = {case: honest_bytes(case, folder / "world") for case in cases}
    for case in cases:
        usual[case] = commands.answer(case, honest[case], 0)  # it may make caches
        print(f"{case}: {usual[case]}", flush=True)
        if usual[case]["outcome"] != "read":
            raise UserError(f"the honest file of {case} was not read: {usual[case]}")
    special = {case: hostile_files.MADE_ON_PURPOSE.get(CASES[case][3], ()) for case in cases}
    for case, content, size, what in hostile.inputs(cases, honest, count, rng, special):
        if time.monotonic() > until:
            break
        answer = {"kind": case, "what": what, **commands.answer(case, content, size)}
        answer["defect"] = hostile.defect(answer, usual[case])
        print(f"{case}, {what}: {answer['outcome']}, {answer['seconds']:.1f} s", flush=True)
        if answer["defect"]:
            print(f"defect: {case}, {what}: {answer['defect']}", flush=True)
            hostile.keep(content, size, f"{len(answers):03d}-{commands.place(case).name}", folder.parent)
        answers.append(answer)
    return answers, usual


def honest_bytes(case, world):
    """The honest file of a case."""
    source = CASES[case][0]
    return CONFIG.read_bytes() if source is None else (world / source).read_bytes()


def save(path, command, rows):
    """Keep a table as {"commands": {command: its cases}, "kinds": rows}; rows of earlier commands stay."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"commands": {}, "kinds": {}}
    commands = {
        line: [case for case in cases if case not in rows] for line, cases in before["commands"].items()
    }
    commands = {line: cases for line, cases in commands.items() if cases} | {command: list(rows)}
    kinds = {**before["kinds"], **rows}
    content = {"commands": commands, "kinds": {case: kinds[case] for case in CASES if case in kinds}}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=positive, default=104)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=CASES, default=list(CASES))
    parser.add_argument("--minutes", type=positive, default=600, help="begin no further input after them")
    parser.add_argument("--save", action="store_true", help="keep the table")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        rng = np.random.default_rng(arguments.seed)
        until = begun + 60 * arguments.minutes
        answers, usual = attack(arguments.only, arguments.inputs, rng, Path(folder), until)
    rows = hostile.summary(answers, usual)
    print("\n".join(hostile.table(rows)))
    if arguments.save:
        words = f"--inputs {arguments.inputs} --seed {arguments.seed} --minutes {arguments.minutes}"
        only = "" if arguments.only == list(CASES) else f" --only {shlex.join(arguments.only)}"
        save(KEPT, f"python -m benchmarks.hostile_commands {words}{only}", rows)
    return hostile.judge(answers)


if __name__ == "__main__":
    cli.run(main)
