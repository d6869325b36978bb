"""Trials of a sweep: ordinary run folders, and an Optuna study that remembers what was tried.

What is tried next is a function of the sweep's seed, the trial's number and the finished trials. A sweep that
was killed goes on with the trial it was in, and ends as one that was not.
"""

import dataclasses
import functools
import json
import logging
import os
import sqlite3
import statistics
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import optuna
import yaml
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from model_utils import child, config
from model_utils.checkpoint import atomic
from model_utils.errors import UserError
from src import selection
from src.selection import pool as pools
from src.sweeps import leave_one_out, pruning

STORAGE, ABOUT, END = "sweep.db", "about", "end"  # the latter two: attributes of study and trial
TARGET = "target_accuracy"  # the objective that needs --oracle true
SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
OF_A_SWEEP = ("seeds", "workers", "sampler", "objective", "prune", "sweep_seed")
FINISHED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)
PATIENCE = 60  # seconds that a run left over from a killed sweep gets to end


class Sweep:
    """A sweep in its folder.

    Args:
        folder: of the sweep, absolute; trials are in folder/trial-0000/seed-0.
        words: of every train.py, e.g. ["--config=configs/photos.yaml"].
        space: {key: optuna distribution}.
        options: has `trials` and OF_A_SWEEP.
        left_out: {source: further words} of the runs of a trial with objective leave_one_source_out.

    Raises:
        UserError: the folder's storage is damaged, or of another sweep.
    """

    def __init__(self, folder, words, space, options, left_out=None):
        self.folder, self.words, self.space, self.options = folder, words, space, options
        self.left_out = left_out
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self.about = {
            "words": words,
            "space": {name: optuna.distributions.distribution_to_json(d) for name, d in space.items()},
            **{name: getattr(options, name) for name in OF_A_SWEEP},
        }
        self.study = self._open()

    def _open(self):
        path = self.folder / STORAGE
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}")
            study = optuna.create_study(
                storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
            )
            before = study.user_attrs.get(ABOUT)
            if before is None and not study.trials:
                study.set_user_attr(ABOUT, self.about)
            elif before != self.about:
                raise UserError(
                    f"output_dir: {self.folder} holds another sweep (other keys, space, seeds, workers, "
                    "sampler, objective or pruning); give the same ones, or another --output_dir"
                )
            return study
        except UserError:
            raise
        except Exception as error:  # Optuna and SQLAlchemy raise a dozen kinds for a file that is not theirs
            if not _of_storage(error):
                raise
            raise UserError(
                f"output_dir: {path} is damaged or no storage of a sweep; choose another --output_dir"
            ) from error

    # Trials

    def unfinished(self):
        """Numbers of trials that were begun and not finished, in order."""
        return [trial.number for trial in self.study.trials if trial.state not in FINISHED]

    def finished(self):
        """How many trials are done, failed ones among them."""
        return sum(trial.state in FINISHED for trial in self.study.trials)

    def batch(self):
        """`workers` trials to their ends, at once; returns a line about each.

        They are those that were begun, or new ones. What is tried depends on earlier batches only: all trials
        of a batch have their values before the first one runs.

        Raises:
            child.Stopped: a signal came; the trials go on in the next sweep.
        """
        trials = self._trials_of_batch()
        values = [{name: self._suggest(trial, name) for name in self.space} for trial in trials]
        # The storage is read here: the threads only run trials.
        numbers, known = zip(*((trial.number, trial.user_attrs.get(END)) for trial in trials), strict=True)
        watch = self._watch()
        # Where the sweep was started: the paths among the words are seen from there.
        with child.Group(os.getcwd()) as group, ThreadPoolExecutor(len(trials)) as threads:
            shares = child.shares(self.options.workers)
            run = functools.partial(self._end, watch, group)
            ends = list(threads.map(run, numbers, known, values, shares))
        # All ends are kept before the first one counts: no trial is judged by others of its batch.
        for trial, end in zip(trials, ends, strict=True):
            trial.set_user_attr(END, dataclasses.asdict(end))
        return [self._tell(trial, *pair) for trial, *pair in zip(trials, values, ends, strict=True)]

    def _tell(self, trial, values, end):
        """Note how a trial ended; returns a line about it."""
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in values.items())
        if end.state == TrialState.COMPLETE.name:
            self._report(trial)
            self.study.tell(trial, end.value)
            return f"trial {trial.number}: {shown}: {self.options.objective} {end.value:.4f}"
        self.study.tell(trial, state=TrialState[end.state])
        return f"trial {trial.number}: {shown}: {end.line}"

    def _report(self, trial):
        """Tell Optuna what the objective was at the evaluations, which later trials are pruned by."""
        if self.options.prune != "true":
            return
        known = self.study.trials[trial.number].intermediate_values
        curve = pruning.curve(self.run_folder(trial.number, 0), self.options.objective)
        for step in sorted(curve.keys() - known.keys()):
            trial.report(curve[step], step)

    def _trials_of_batch(self):
        """Optuna's Trials of the batch that is not finished, or of the next one; new ones are asked for."""
        waiting = self.unfinished()
        first = waiting[0] if waiting else len(self.study.trials)
        end = (first // self.options.workers + 1) * self.options.workers
        begun = [optuna.trial.Trial(self.study, self.study.trials[n]._trial_id) for n in waiting]
        new = range(len(self.study.trials), min(end, self.options.trials))
        return begun + [self.study.ask() for _ in new]

    def _watch(self):
        """The Watch over the trials of a batch, or None: it knows what is finished now, and only that."""
        if self.options.prune != "true":
            return None
        earlier = optuna.create_study(direction="maximize")
        earlier.add_trials([trial for trial in self.study.trials if trial.state in FINISHED])
        return pruning.Watch(earlier, self.options.objective)

    def _end(self, watch, group, number, known, values, cores):
        """Run a trial; its End. known: that of a trial that has one already, else None."""
        if known:
            return End(**known)
        start = functools.partial(group.run, cores=cores)
        try:
            return End(TrialState.COMPLETE.name, self._run(number, values, start, watch))
        except pruning.Pruned as pruned:
            return End(TrialState.PRUNED.name, line=str(pruned))
        except TrialFailed as failure:
            return End(TrialState.FAIL.name, line=f"failed: {failure}")

    def _suggest(self, trial, name):
        """The value of one key; seeded by trial and key: an interruption between two changes nothing."""
        seed = seed_of(self.options.sweep_seed, trial.number, name)
        self.study.sampler = SAMPLERS[self.options.sampler](seed=seed)
        kind = self.space[name]
        if isinstance(kind, CategoricalDistribution):
            return trial.suggest_categorical(name, kind.choices)
        suggest = trial.suggest_int if isinstance(kind, IntDistribution) else trial.suggest_float
        return suggest(name, kind.low, kind.high, step=kind.step, log=kind.log)

    def _run(self, number, values, start, watch):
        """The objective of a trial: the mean over its runs. start: runs a command; watch: for pruning."""
        given = [f"--{name}={_word(value)}" for name, value in values.items()]
        found = []
        for seed in range(self.options.seeds):
            for source, more in (self.left_out or {None: []}).items():
                folder = self.run_folder(number, seed, source)
                if not (folder / "result.json").is_file():
                    words = [*self.words, *given, *more, f"--seed={seed}", f"--output_dir={folder}"]
                    self._train(folder, words, start, watch and watch.of(folder))
                if watch:
                    watch.judge(folder)
                found.append(self._objective(folder))
        return statistics.mean(found)

    def run_folder(self, number, seed, left_out=None):
        """The folder of one run of a trial; left_out: the source that it leaves out."""
        without = "" if left_out is None else f"-without-{left_out}"
        return self.folder / f"trial-{number:04d}" / f"seed-{seed}{without}"

    def _train(self, folder, words, start, until):
        words = [str(config.ROOT / "train.py"), *words, "--report=false"]
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        while True:
            resume = ["--resume=true"] if list((folder / "checkpoints").glob("step-*.ckpt")) else []
            with open(folder / "printed.log", "w+", encoding="utf-8", errors="replace") as output:
                status = start([*words, *resume], output, until=until)
                output.seek(0)
                errors = [line for line in output if line.startswith("error: ")]
            if status == 0 or (until and until()):
                return
            last = errors[-1].removeprefix("error: ").strip() if errors else f"status {status}"
            if "another run is writing" not in last or time.monotonic() - begun > PATIENCE:
                raise TrialFailed(last)
            time.sleep(1)

    def _objective(self, folder):
        if self.left_out:
            value = leave_one_out.accuracy(folder)
        elif self.options.objective == TARGET:
            value = pools.read(folder).accuracy
        else:
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            value = result.get("selection", {}).get(self.options.objective)
        if value is None:
            raise TrialFailed(f"the run has no {self.options.objective}")
        return float(value)

    # The end

    def runs(self):
        """Folders of the runs of all trials that did not fail; without those that leave a source out."""
        seeds = range(self.options.seeds)
        return [self.run_folder(number, seed) for number in self.objectives() for seed in seeds]

    def objectives(self):
        """{trial's number: its objective} of all trials that did not fail."""
        good = (trial for trial in self.study.trials if trial.state == TrialState.COMPLETE)
        return {trial.number: trial.value for trial in good}

    def pruned(self):
        """How many trials were stopped early."""
        return sum(trial.state == TrialState.PRUNED for trial in self.study.trials)

    def failures(self):
        """{trial's number: its one line}."""
        failed = (trial for trial in self.study.trials if trial.state == TrialState.FAIL)
        return {trial.number: trial.user_attrs[END]["line"] for trial in failed}

    def values(self, number):
        """{key: value} of a trial."""
        return dict(self.study.trials[number].params)


def seed_of(sweep_seed, number, name):
    """The sampler's seed for one key of one trial."""
    return zlib.crc32(f"{sweep_seed} {number} {name}".encode())


@dataclasses.dataclass
class End:
    """How a trial ended: the name of its Optuna state, its objective, or a line that says why it has none."""

    state: str
    value: float | None = None
    line: str = ""


class TrialFailed(Exception):
    """A trial that left with an error, which is its text."""


def check_objective(name, oracle, sees_target=True):
    """UserError unless an objective may be used.

    oracle: whether target labels were asked for. sees_target: whether the method may look at target images.
    """
    if name == TARGET:
        if not oracle:
            raise UserError(
                f"objective: {TARGET} chooses by target labels, which nobody has who needs to adapt; name a "
                f"rule ({', '.join(selection.of_one_run())}), or add --oracle true"
            )
    elif name not in (*selection.of_one_run(), leave_one_out.NAME):
        rules = ", ".join((*selection.of_one_run(), leave_one_out.NAME))
        raise UserError(f"objective: {name!r:.60} is no rule for one run; rules: {rules}")
    elif not sees_target and name not in (selection.WITHOUT_TARGET, leave_one_out.NAME):
        raise UserError(
            f"objective: {name} looks at target images, which this method must not; choose "
            f"{selection.WITHOUT_TARGET} or {leave_one_out.NAME}"
        )


def write_winner(path, words, values, seed, line):
    """Write what the chosen run was trained with as a YAML file that train.py --config takes.

    words: of the sweep's train.py. values: of the trial. seed: of the run. line: a comment that says where it
    comes from.
    """
    given = config.read_arguments(words)
    overlay = config.read_yaml(given.pop("config")) if "config" in given else {}
    content = {**overlay, **given, **values, "seed": seed, "output_dir": "outputs/winner"}
    text = yaml.safe_dump(content, sort_keys=False)
    with atomic(path) as temporary:
        temporary.write_text(f"# {line}\n{text}", encoding="utf-8")


def _shown(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _word(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def _of_storage(error):
    """Whether an exception says that the database can't be used."""
    kinds = ("sqlalchemy", "alembic", "optuna", "sqlite3")
    return isinstance(error, sqlite3.Error | KeyError | ValueError) or type(error).__module__.startswith(
        kinds
    )
