"""Runs that are killed again and again, and must end as if nothing had happened.

    python -m benchmarks.kill_drill [--kills N] [--kills_of_a_run K] [--minutes M] [--only dann …]
                                    [--mode pynative] [--seed S] [--save [--name NAME]]
    python -m benchmarks.kill_drill --kept

Each scenario is a short real run that is made once without a fault, for reference. Then it is made again and
killed with SIGKILL: while a checkpoint is being written, up to 50 ms after a step, or at any moment between
its start and its end; with two processes, all of them at once or one worker alone. After some kills the
newest checkpoint is cut short as well, as a machine that lost its power may leave it. Each run is continued
(`--resume true`; a sweep by the same command) until it ends. What it leaves then is compared with the
reference: parameters, optimizer state, the network's file, all logged values; of a sweep each trial's values,
objective and network. Goes through the scenarios in turn, K kills in each run, until N kills are made or M
minutes are over; the run in hand is brought to its end. `--save` keeps the figures after each run, in
benchmarks/results/devices/NAME.json; `--kept` prints the table of docs/distributed.md from such files.
"""

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks import ends, kill_figures, kill_scenarios, positive
from model_utils import checkpoint, cli
from model_utils.config import ROOT
from model_utils.errors import UserError

LIMIT = 1800  # seconds for anything that takes a few; other programs may need the machine
MOMENTS = ("writing", "step", "any")
_started = []  # every process of the drill, so that none is left behind


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
    begun, found, undisturbed = time.monotonic(), {one.name: kill_figures.Figures() for one in chosen}, {}
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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=positive, default=300)
    parser.add_argument("--kills_of_a_run", type=positive, default=4, metavar="K")
    parser.add_argument(
        "--minutes", type=float, default=kill_figures.NO_LIMIT, help="begin no run after this time"
    )
    parser.add_argument("--only", nargs="+", metavar="SCENARIO")
    parser.add_argument(
        "--mode",
        choices=("graph", "pynative"),
        default="graph",
        help="of the runs; pynative compiles nothing",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--save", action="store_true", help="keep the figures")
    parser.add_argument(
        "--name", default=kill_figures.NAME, help="of the file that keeps them (default %(default)s)"
    )
    parser.add_argument("--kept", action="store_true", help="print the table of the kept figures, and end")
    arguments = parser.parse_args()
    if arguments.kept:
        print("\n".join(kill_figures.kept_table()))
        return 0
    from tests import helpers

    with tempfile.TemporaryDirectory(prefix="kill-drill-") as folder:
        data = helpers.make_data("hardnet")["dataset_path"]
        every = {one.name: one for one in kill_scenarios.scenarios(data, arguments.mode)}
        unknown = [name for name in arguments.only or () if name not in every]
        if unknown:
            raise UserError(f"only: there is no scenario {unknown[0]!r}; there are {', '.join(every)}")
        chosen = [every[name] for name in arguments.only or every]
        rng, found = random.Random(arguments.seed), {}
        try:
            limits = arguments.kills, arguments.kills_of_a_run, arguments.minutes
            for found, seconds in drill(chosen, *limits, rng, Path(folder)):
                print(f"{seconds:.0f} s", *kill_figures.table(found), sep="\n", flush=True)
                if arguments.save:
                    kill_figures.save(arguments.name, found, kill_figures.command(arguments), seconds)
        finally:
            for process in _started:
                if process.poll() is None:
                    stop(family(process))
    failures = [line for figures in found.values() for line in figures.failures]
    if failures:
        raise UserError(f"{len(failures)} runs did not end as they should: {'; '.join(failures)}")
    return 0


if __name__ == "__main__":
    cli.run(main)
