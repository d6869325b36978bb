"""Two hosts over slow links, against the arithmetic of docs/scaling.md: python -m benchmarks.links [--save]

The hosts are network namespaces on this machine (benchmarks/namespaces.py), one process on each, and the
kernel's token bucket (`tc … tbf`) limits the rate of their links; that needs root. Each network is trained
by the real command on one process alone, then on two hosts while the rate changes every few steps, three
times through all rates, then alone again. Measured are the time from one logged step to the next, and the
bytes that the first host's interface counts meanwhile. `--save` keeps everything in
benchmarks/results/devices/links.json, from which `python -m benchmarks.scaling` writes a part of
docs/scaling.md.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import namespaces, positive
from benchmarks.host_runs import END_SECONDS, Drill, Process
from model_utils import cli
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError
from model_utils.run_log import read_metrics

KEPT = ROOT / "benchmarks" / "results" / "devices" / "links.json"
COMMON = {
    "eval_interval": 10**9,
    "save_checkpoint_steps": 10**9,
    "log_interval": 1,
    "tensorboard": "false",
    "report": "false",
    "batch_size": 8,  # little arithmetic, so that the link takes most of a step
}
# Name in docs/scaling.md: (method of tests/tiny, key of the number of steps, other keys, rates in Mbit/s).
NETWORKS = {
    "DANN": ("dann", "steps_per_epoch", {"n_pretrain_epochs": 0, "n_epoch": 1}, (10, 5, 2, 1)),
    "HarDNet-39DS": ("hardnet", "train_iterations", {}, (50, 20, 10, 5)),
}
WARM = 6  # first steps, which compile and try out numbers of threads
PASSES = 3  # through all rates
STEPS = 2  # measured at each rate and pass; one more before them is not, the rate changes in it
COUNTERS = "sys/class/net/eth0/statistics"


def schedule(rates, steps):
    """[rate of each step], the first of them None, which is no limit, like the last."""
    each = steps + 1
    one_pass = [rate for rate in (None, *rates) for _ in range(each)]
    return [None] * WARM + one_pass * PASSES + [None] * 2


def measured(rates, moments, steps):
    """{rate: {"seconds", "sent", "received": [of each measured step]}} of a run on two hosts.

    Args:
        rates: of `schedule`. moments: [(seconds, bytes sent, bytes received) when a step had ended, …].
        steps: measured of those that follow one another at one rate.
    """
    found = {}
    for begin in range(WARM, len(rates) - 2, steps + 1):
        entry = found.setdefault(rates[begin], {"seconds": [], "sent": [], "received": []})
        for index in range(begin + 1, begin + 1 + steps):
            before, after = moments[index - 1], moments[index]
            entry["seconds"].append(round(after[0] - before[0], 4))
            entry["sent"].append(after[1] - before[1])
            entry["received"].append(after[2] - before[2])
    return found


def keys_of(name, steps):
    """The options of train.py for a network, on data made by the tests or by the dependencies."""
    from tests import helpers

    method, counted, more, _ = NETWORKS[name]
    own = {"config": f"tests/tiny/{method}.yaml", **helpers.tiny_data(method), **more, counted: steps}
    return {**COMMON, **own}


def logged(folder):
    """The rows of the training steps in metrics.jsonl of a run."""
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]


def alone(name, folder, steps):
    """Seconds of each step on one process, with the threads that a process of two has."""
    keys = {**keys_of(name, WARM + steps), "output_dir": folder / "run"}
    folder.mkdir(parents=True)
    command = ["bash", str(ROOT / "scripts" / "run_train_cpu.sh"), "1"]
    command += [f"--{key}={value}" for key, value in keys.items()]
    process = Process(subprocess.Popen, command, folder, "alone")
    if process.process.wait():
        raise UserError(f"{' '.join(command)} failed: {process.errors()[-1:]}")
    ends = [row["seconds"] for row in logged(folder / "run")][WARM - 1 :]
    return [round(after - before, 4) for before, after in itertools.pairwise(ends)]


def watch(drill, rates):
    """Set the rate before each step of a run and read the counters after it; `moments` of `measured`."""
    moments, now, size = [], None, 0
    launcher = drill.launchers[0].process
    counters = Path(f"/proc/{launcher.pid}/root") / COUNTERS  # as the first host sees them
    path = drill.output_dir(0) / "metrics.jsonl"
    while len(moments) < len(rates):
        if launcher.poll() is not None:
            raise UserError(f"{drill.folder}: the run ended after {len(moments)} steps: {drill.told()}")
        before, size = size, path.stat().st_size if path.is_file() else 0
        for row in logged(path.parent)[len(moments) :] if size != before else ():
            sent, received = (int((counters / f"{way}_bytes").read_text()) for way in ("tx", "rx"))
            moments.append((row["seconds"], sent, received))
            following = rates[min(len(moments), len(rates) - 1)]
            if following != now:
                drill.hosts.limit(following)
                now = following
        time.sleep(0.005)
    return moments


def together(name, folder, steps):
    """`measured` of a network on two hosts."""
    rates = schedule(NETWORKS[name][3], steps)
    with Drill(folder, keys=keys_of(name, len(rates))) as drill:
        drill.hosts.plain()
        drill.hosts.cubic()
        drill.start()
        moments = watch(drill, rates)
        drill.begun = time.monotonic()  # of its end
        drill.end(END_SECONDS)
        drill.must(0)
        if drill.wrong:
            raise UserError(f"{folder}: {drill.wrong}")
    return measured(rates, moments, steps)


def measure(name, folder, steps):
    """What is kept of a network."""
    before = alone(name, folder / "before", PASSES * steps)
    links = together(name, folder / "hosts", steps)
    after = alone(name, folder / "after", PASSES * steps)
    return {
        "alone": before + after,
        "links": [{"megabits": rate, **found} for rate, found in links.items()],
    }


# The page


def rows_of(kept, count):
    """Lines of a table for a network. kept: of `measure`. count: bytes of its gradients."""
    from benchmarks.scaling import seconds_of_ring

    medians = {row["megabits"]: statistics.median(row["seconds"]) for row in kept["links"]}
    fastest = {row["megabits"]: min(row["seconds"]) for row in kept["links"]}
    free = medians[None]
    for row in kept["links"]:
        rate, seconds = row["megabits"], medians[row["megabits"]]
        crossed = ", ".join(f"{statistics.median(row[way]) / 1e6:.2f}" for way in ("sent", "received"))
        if rate is None:
            yield f"| no limit | {crossed} | {free:.2f} | | | | | | | |"
            continue
        ring, link = seconds_of_ring(count, 2, rate / 1000), seconds - free
        cells = [f"{rate} Mbit/s", crossed]
        times = seconds, link, ring, link / ring, (fastest[rate] - fastest[None]) / ring
        cells += [f"{value:.2f}" for value in times]
        cells += [f"{2 * free / whole:.3f}" for whole in (seconds, free + ring, free + ANSWERED * ring)]
        yield f"| {' | '.join(cells)} |"


HEADS = (
    "link",
    "MB sent, received a step",
    "s a step",
    "of it for the link",
    "ring: 8 B / R",
    "measured : ring",
    "of the fastest steps",
    "speed-up, measured",
    "ring",
    "ring with answers",
)
ANSWERED = 2  # messages, where each is sent back


def section(content, methods):
    """Lines of docs/scaling.md. content: of KEPT. methods: {name: {"bytes": …}} of scaling.json."""
    lines = ["", "## Checked on two hosts over limited links", ""]
    lines.append(CHECKED.strip().format(command=content["command"]))
    for name, kept in content["networks"].items():
        count = methods[name]["bytes"]
        lines += ["", f"### {name}, {count / 1e6:.2f} MB of gradients", ""]
        lines += [
            f"Medians of {len(kept['links'][0]['seconds'])} steps at each rate. One process alone took "
            f"{min(kept['alone']):.2f} to {max(kept['alone']):.2f} s a step, the median of "
            f"{len(kept['alone'])} is {statistics.median(kept['alone']):.2f} s.",
            "",
            f"| {' | '.join(HEADS)} |",
            "|---" * len(HEADS) + "|",
            *rows_of(kept, count),
        ]
    return lines


CHECKED = """
Measured by `{command}`:
two networks are trained on two hosts, network namespaces of one machine with a process on each, and the
kernel's token bucket limits the rate of their links (`tc … tbf`). A batch has 8 images, so that the link
takes most of a step. The rate changes every few steps of one run, three times through all rates.

The machine was shared with other programs, which at times took most of its two cores: the steps of one
process alone, before and after the run, show how much that changed. Each rate is therefore compared with the
steps without a limit in the same run: "of it for the link" is the median of a step less the median of those,
and "speed-up" is the samples a second of both hosts divided by those of one process whose step takes as long
as one without a limit. The fastest step at each rate less the fastest without a limit is the one that other
programs disturbed least. B is the size of the gradients and p is 2, so a ring takes 8 B / R. The bytes are
those that the first host's interface counted, with the headers of the frames.

**MindSpore's collective for CPUs sends everything twice.** Its source says why: it is a ring, but whoever
receives a part sends all of it back as the answer, and the sender waits for that
(`AbstractNode::ProcessCollectiveSendData`). Each process therefore sends 4 (p - 1) / p · B bytes, and their
headers; the last column takes twice the time of the ring. On CPUs the tables above hold at twice the rate:
what stands under 1 Gbit/s needs 2. NCCL and HCCL, which GPUs and Ascend use, were not measured.
"""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--steps", type=positive, default=STEPS, help="measured at each rate and pass")
    parser.add_argument("--save", action="store_true", help="keep what was measured")
    arguments = parser.parse_args()
    if reason := namespaces.missing() or namespaces.without_limits():
        print(f"skipped: no hosts with limited links can be made here: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="links-") as folder:
        for name in arguments.only:
            found = measure(name, Path(folder) / name, arguments.steps)
            print(json.dumps({name: found}), flush=True)
            if arguments.save:
                save({name: found}, arguments.steps)
    return 0


def save(found, steps):
    """Keep what was measured, in the place of what was kept of the same networks."""
    content = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {"networks": {}}
    content = {
        "command": f"python -m benchmarks.links{'' if steps == STEPS else f' --steps {steps}'} --save",
        "machine": f"{os.cpu_count()} cores",
        "networks": {**content["networks"], **found},
    }
    with atomic(KEPT) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
