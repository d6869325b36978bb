"""Runs that are killed again and again, and must end as if nothing had happened.

    python -m benchmarks.kill_drill [--kills N] [--kills_of_a_run K] [--minutes M] [--only dann …] [--seed S]
                                    [--save [--name NAME]]

Each scenario is a short real run that is made once without a fault, for reference. Then it is made again and
killed with SIGKILL: while a checkpoint is being written, up to 50 ms after a step, or at any moment between
its start and its end; with two processes, all of them at once or one worker alone. After some kills the
newest checkpoint is cut short as well, as a machine that lost its power may leave it. Each run is continued
(`--resume true`; a sweep by the same command) until it ends. What it leaves then is compared with the
reference: parameters, optimizer state, the network's file, all logged values; of a sweep each trial's values,
objective and network. Goes through the scenarios in turn, K kills in each run, until N kills are made or M
minutes are over; the run in hand is brought to its end. `--save` keeps the figures of each run as it ends, in
benchmarks/results/devices/NAME.json.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks import ends, positive
from model_utils import checkpoint, cli
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError

KEPT = ROOT / "benchmarks" / "results" / "devices"
NAME = "kill_drill"
NO_LIMIT = 1e9  # minutes
LIMIT = 1800  # seconds for anything that takes a few; other programs may need the machine
MOMENTS = ("writing", "step", "any")
EVERY_STEP = {"save_checkpoint_steps": 1, "eval_interval": 10**9, "tensorboard": "false", "log_interval": 1}
_started = []  # every process of the drill, so that none is left behind
SWEEP_SPACE = "lr: {low: 0.001, high: 0.01, log: true}\nmcc_weight: [0.5, 1.0]\n"


@dataclasses.dataclass
class Scenario:
    """A run to be killed: its configuration, keys and steps; `processes` of it, or a sweep of such runs."""

    name: str
    config: str
    steps: int
    keys: dict = dataclasses.field(default_factory=dict)
    processes: int = 1
    trials: int = 0

    def words(self, folder):
        """The command of one start in a folder."""
        keys = {
            "config": self.config,
            "device_target": "CPU",
            **EVERY_STEP,
            **self.keys,
            "output_dir": folder,
        }
        if self.keys.get("cache_features"):
            keys["feature_folder"] = folder / "features"
        if self.trials:
            space = folder.parent / "space.yaml"
            space.write_text(SWEEP_SPACE, encoding="utf-8")
            keys |= {"space": space, "trials": self.trials}
            del keys["log_interval"]
            return [sys.executable, "sweep.py", *options(keys)]
        if checkpoint.listed(folder):  # killed before its first checkpoint it starts again
            keys["resume"] = "true"
        if self.processes == 1:
            return [sys.executable, "train.py", *options(keys)]
        return ["bash", "scripts/run_train_cpu.sh", str(self.processes), *options(keys)]

    def end(self, folder):
        """All that a finished run leaves, to be compared; see benchmarks/ends.py."""
        return (ends.of_sweep if self.trials else ends.of_run)(folder, self.steps)


def scenarios(data):
    """Every Scenario. data: a folder for the images of HarDNet."""
    tiny = "tests/tiny/{}.yaml"
    dann = {"n_pretrain_epochs": 1, "n_epoch": 1, "steps_per_epoch": 12}
    cached = {"freeze_backbone": "true", "cache_features": "true", "pretrained": "none", "iterations": 24}
    adda = {"iterations": 10, "discriminator_iterations": 4, "adversary_iterations": 10}
    hardnet = {"epoch_size": 8, "dataset_path": data}
    masf = {"train_iterations": 24, "meta_order": "first"}
    return [
        Scenario("dann", tiny.format("dann"), 24, dann),
        Scenario("kept features", tiny.format("mcc"), 24, cached),
        Scenario("dann, 2 processes", tiny.format("dann"), 24, dann, processes=2),
        Scenario("sweep", tiny.format("mcc"), 4, trials=2),
        Scenario("masf", tiny.format("masf"), 24, masf),
        Scenario("adda", tiny.format("adda"), 24, adda),
        Scenario("hardnet", tiny.format("hardnet"), 24, hardnet),
        Scenario("kept features, 2 processes", tiny.format("mcc"), 24, cached, processes=2),
        Scenario("masf, 2 processes", tiny.format("masf"), 24, masf, processes=2),
    ]


def options(keys):
    """{'lr': 1} -> ['--lr=1']."""
    return [f"--{name}={value}" for name, value in keys.items()]


# Faults


def start(scenario, folder):
    """Begin, or continue, a run; what it prints goes to a file beside its folder."""
    words = scenario.words(folder)
    environment = {name: value for name, value in os.environ.items() if name not in ("GLOG_v", "PYTHONPATH")}
    # The scripts take `python` from the path, unless the repository has an environment of its own.
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    with open(folder.with_suffix(".log"), "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    _started.append(process)
    return process


def wait_until(process, condition):
    """Whether `condition` came true before the process ended.

    Raises:
        UserError: neither, within LIMIT seconds.
    """
    deadline = time.monotonic() + LIMIT
    while process.poll() is None:
        if condition():
            return True
        if time.monotonic() > deadline:
            raise UserError(f"process {process.pid} did not get on for {LIMIT} s")
        time.sleep(0.0005)
    return False


def reach(process, scenario, folder, moment, seconds, rng):
    """Wait for the moment of a kill; False if the run ended before. seconds: that a whole run takes."""
    if moment == "any" or scenario.trials:
        late = time.monotonic() + rng.uniform(0, seconds)
        return wait_until(process, lambda: time.monotonic() >= late)
    before = ends.half_written(folder)
    steps = rng.randrange(ends.steps_logged(folder), max(scenario.steps - 1, ends.steps_logged(folder) + 1))
    if not wait_until(process, lambda: ends.steps_logged(folder) >= steps):
        return False
    if moment == "writing":
        if not wait_until(process, lambda: ends.half_written(folder) - before):
            return False
        time.sleep(rng.uniform(0, 0.002))
    else:
        time.sleep(rng.uniform(0, 0.05))
    return process.poll() is None


def family(process):
    """The process and everything that it has started, itself last."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [*children, psutil.Process(process.pid)]


def workers(process):
    """The training processes of a run of several."""
    found = []
    for child in family(process):
        try:
            if child.environ().get("MS_ROLE") == "MS_WORKER":
                found.append(child)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def kill(process, scenario, rng):
    """SIGKILL; "all" of the run, or "worker": one alone, after which the others have to end by themselves."""
    several = workers(process) if scenario.processes > 1 else []
    alone = len(several) > 1 and rng.random() < 0.5
    # A sweep is killed alone: its trial has to end by itself, or to be waited for.
    if alone:
        stop([rng.choice(several)])
    else:
        stop(family(process)[-1:] if scenario.trials else family(process))
    process.wait(timeout=LIMIT)
    return "worker" if alone else "all"


def stop(processes):
    """SIGKILL to each of these, and wait until all are gone."""
    for victim in processes:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=LIMIT)


def cut_short(folder, rng):
    """Cut the newest of several checkpoints at a random place; whether there was one to cut."""
    paths = checkpoint.listed(folder)
    if len(paths) < 2:
        return False
    size = paths[0].stat().st_size
    os.truncate(paths[0], rng.randrange(size))
    return True


# The drill


@dataclasses.dataclass
class Figures:
    """What was done to one scenario."""

    kills: int = 0
    half_written: int = 0  # kills that left a checkpoint half written
    one_worker: int = 0  # kills of one worker of several
    cut_short: int = 0  # checkpoints cut short besides
    starts: int = 0
    runs: int = 0
    identical: int = 0
    failures: list = dataclasses.field(default_factory=list)  # what went wrong, in words


def finish(scenario, folder):
    """Bring a run to its end; what it leaves.

    Raises:
        UserError: it did not leave with status 0.
    """
    process = start(scenario, folder)
    status = process.wait(timeout=LIMIT)
    if status:
        text = folder.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip()
        raise UserError(f"{scenario.name}: it left with status {status}: {text[-400:]!r}")
    return scenario.end(folder)


def reference(scenario, folder):
    """(what an undisturbed run leaves, the seconds it took)."""
    folder.mkdir(parents=True)
    begun = time.monotonic()
    return finish(scenario, folder), time.monotonic() - begun


def one_run(scenario, folder, undisturbed, moments, rng, figures):
    """A run with a kill at each of these moments and its end, compared; the figures are added to.

    It has fewer kills if it ends before one of them.

    Raises:
        UserError: it ends otherwise than the undisturbed one.
    """
    wanted, seconds = undisturbed
    folder.mkdir(parents=True)
    ended = False
    for moment in moments:
        process = start(scenario, folder)
        figures.starts += 1
        if not reach(process, scenario, folder, moment, seconds, rng):
            ended = process.wait() == 0
            if not ended:
                break  # `finish` says why, if it happens again
            break
        before = ends.half_written(folder)
        figures.one_worker += kill(process, scenario, rng) == "worker"
        figures.kills += 1
        figures.half_written += bool(before and ends.half_written(folder))
        if not scenario.trials and rng.random() < 0.3:
            figures.cut_short += cut_short(folder, rng)
    if ended:
        found = scenario.end(folder)
    else:
        figures.starts += 1
        found = finish(scenario, folder)
    figures.runs += 1
    if where := ends.difference(wanted, found):
        raise UserError(f"{scenario.name}: a run that was killed ended otherwise: {where}")
    figures.identical += 1


def drill(chosen, kills, of_a_run, minutes, rng, folder):
    """Make `kills` kills, `of_a_run` in each run, the scenarios in turn, begun within so many minutes.

    Yields ({scenario's name: Figures}, seconds) after each run.
    """
    begun, found, undisturbed = time.monotonic(), {one.name: Figures() for one in chosen}, {}
    for turn, (number, scenario) in enumerate(itertools.cycle(enumerate(chosen))):
        done = sum(figures.kills for figures in found.values())
        if done >= kills or time.monotonic() - begun > 60 * minutes:
            return
        figures, place = found[scenario.name], folder / f"scenario-{number}"
        try:
            if scenario.name not in undisturbed:
                undisturbed[scenario.name] = reference(scenario, place / f"reference-{turn}")
            moments = [rng.choice(MOMENTS) for _ in range(min(of_a_run, kills - done))]
            one_run(scenario, place / f"run-{turn}", undisturbed[scenario.name], moments, rng, figures)
        except (UserError, subprocess.TimeoutExpired) as failure:
            figures.failures.append(str(failure))
        yield found, time.monotonic() - begun


def table(found):
    """The figures as lines of a Markdown table, with their sums."""
    names = [field.name for field in dataclasses.fields(Figures) if field.type is int]
    heads = ["scenario", *(name.replace("_", " ") for name in names)]
    rows = {name: dataclasses.asdict(figures) for name, figures in found.items() if figures.starts}
    rows["all"] = {name: sum(row[name] for row in rows.values()) for name in names}
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return lines + [f"| {name} | {' | '.join(str(row[n]) for n in names)} |" for name, row in rows.items()]


def save(name, found, command, seconds):
    """Keep the figures under a name."""
    rows = {name: dataclasses.asdict(figures) for name, figures in found.items()}
    KEPT.mkdir(parents=True, exist_ok=True)
    with atomic(KEPT / f"{name}.json") as temporary:
        text = json.dumps({"command": command, "seconds": round(seconds), "scenarios": rows}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=positive, default=300)
    parser.add_argument("--kills_of_a_run", type=positive, default=4, metavar="K")
    parser.add_argument("--minutes", type=float, default=NO_LIMIT, help="begin no run after this time")
    parser.add_argument("--only", nargs="+", metavar="SCENARIO")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--save", action="store_true", help="keep the figures")
    parser.add_argument("--name", default=NAME, help=f"of the file that keeps them (default {NAME})")
    arguments = parser.parse_args()
    from tests import helpers

    with tempfile.TemporaryDirectory(prefix="kill-drill-") as folder:
        every = {one.name: one for one in scenarios(helpers.make_data("hardnet")["dataset_path"])}
        unknown = [name for name in arguments.only or () if name not in every]
        if unknown:
            raise UserError(f"only: there is no scenario {unknown[0]!r}; there are {', '.join(every)}")
        chosen = [every[name] for name in arguments.only or every]
        rng, found = random.Random(arguments.seed), {}
        try:
            limits = arguments.kills, arguments.kills_of_a_run, arguments.minutes
            for found, seconds in drill(chosen, *limits, rng, Path(folder)):
                print(f"{seconds:.0f} s", *table(found), sep="\n", flush=True)
                if arguments.save:
                    save(arguments.name, found, command(arguments), seconds)
        finally:
            for process in _started:
                if process.poll() is None:
                    stop(family(process))
    failures = [line for figures in found.values() for line in figures.failures]
    if failures:
        raise UserError(f"{len(failures)} runs did not end as they should: {'; '.join(failures)}")
    return 0


def command(arguments):
    """The command that these arguments came from."""
    words = ["python -m benchmarks.kill_drill", f"--kills {arguments.kills}"]
    words.append(f"--kills_of_a_run {arguments.kills_of_a_run}")
    if arguments.minutes < NO_LIMIT:
        words.append(f"--minutes {arguments.minutes:g}")
    if arguments.only:
        words.append(f"--only {shlex.join(arguments.only)}")
    return " ".join([*words, f"--seed {arguments.seed}"])


if __name__ == "__main__":
    cli.run(main)
