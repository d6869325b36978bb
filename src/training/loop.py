"""The one training loop. It drives any `Trainer` and never learns what a method does."""

import contextlib
import hashlib
import logging
import math
import signal
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model_utils import agreement, checkpoint, run_log
from model_utils.device import broadcast_parameters, synchronise_batch_norm
from model_utils.errors import PeerError, UserError
from model_utils.modelarts import Outbox
from src.evaluation import plots, result
from src.report import page
from src.selection import probe
from src.training import run_folder
from src.training.interrupt import Interrupt, Stopped

log = logging.getLogger("run")


class Run:
    """One training run: its cell, its evaluator and what it writes."""

    def __init__(self, cell, test_sets, config, device, started):
        self.cell, self.test_sets, self.config, self.device = cell, test_sets, config, device
        self.output_dir = Path(config.output_dir)
        self.started = started
        self.earlier_seconds = 0.0  # of the run that this one continues
        self.step = 0  # training steps done, over all phases
        self.trained_seconds = self.trained_samples = 0
        self.oracle = {}
        self.accuracies = None  # of the last evaluation
        self.evaluator = cell.evaluator
        self.probe, self.judged = probe.for_run(cell), {}
        self.outbox = Outbox(config, enabled=device.is_main)
        self._ranks, self._last_batch = range(device.world), None
        self.total_steps = sum(phase.steps for phase in cell.phases)
        if self.total_steps == 0:
            raise UserError(
                "nothing to train: every phase has 0 steps; raise a number of epochs or iterations"
            )

    # State

    def resume(self):
        """Fill everything from the newest good checkpoint (rank 0; `share_state` tells the others)."""
        path, values, meta = checkpoint.newest(self.output_dir)
        run_folder.check_same_settings(meta["config"], self.config, path)
        run_folder.check_same_classes(meta.get("classes"), self.cell.task.classes, path)
        processes = meta.get("processes", self.device.world)
        if processes != self.device.world:
            raise UserError(f"resume: {path} was trained with {processes} processes, not {self.device.world}")
        checkpoint.restore_state(self.cell.state(), values, path)
        checkpoint.set_aside_newer(self.output_dir, path)
        self.step, self.earlier_seconds, self.oracle = meta["step"], meta["seconds"], meta["oracle"]
        self.trained_samples, self.trained_seconds = meta["trained"]
        log.info("resuming from %s after step %d of %d", path, self.step, self.total_steps)

    def share_state(self):
        """Give every rank the parameters and the step of rank 0, fresh or resumed; all ranks must call it."""
        broadcast_parameters(self.cell.state().values(), self.device)
        self.step = int(self.device.all_sum(self.step if self.device.is_main else 0)[0])

    @property
    def classes(self):
        """The names of the classes in the order of the logits."""
        return list(self.cell.task.classes)

    def seconds(self):
        """Seconds of training so far, earlier parts of a resumed run included."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def meta(self):
        """What a checkpoint says of the run beside its parameters."""
        return {
            "format": checkpoint.FORMAT,
            "method": self.config.method,
            "step": self.step,
            "seconds": self.seconds(),
            "trained": [self.trained_samples, self.trained_seconds],
            "oracle": self.oracle,
            "processes": self.device.world,
            "classes": self.classes,
            "config": self.config.as_dict(),
        }

    def save(self, required=False):
        """Write a training checkpoint (rank 0); all ranks must call it.

        A full disk is reported, and fatal only when `required`; no rank goes on before such a one is written.
        """
        broadcast_parameters([self.cell.whole], self.device, statistics_only=True)
        with self.device.together() if required else contextlib.nullcontext():
            if self.device.is_main:
                self._write_checkpoint(required)

    def _write_checkpoint(self, required):
        path = checkpoint.step_path(self.output_dir, self.step)
        try:
            checkpoint.save_state(self.cell.state(), self.meta(), path)
        except OSError as error:
            line = f"checkpoint {path} could not be written ({_reason(error)}); earlier ones are untouched"
            if required:
                raise UserError(f"{line}; {_mend(error)}, then continue with --resume true") from error
            log.warning("warning: %s; trying again at the next one", line)
            return
        checkpoint.prune(self.output_dir, self.config.keep_checkpoint_max)
        self.outbox.send()

    # Training

    def train(self, metrics, interrupt):
        """All phases from the current step on."""
        begin = 0
        interrupt.something_to_save = self.device.world > 1  # all ranks must stop at the same step
        bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            unit="step",
            disable=not (self.device.is_main and sys.stderr.isatty()),
            dynamic_ncols=True,
        )
        with bar:
            for phase in self.cell.phases:
                if self.step < begin + phase.steps:
                    phase.step = self.step - begin  # 0 unless the run resumes inside the phase
                    self.cell.start_phase(phase)
                    bar.set_description(phase.name)
                while self.step < begin + phase.steps:
                    interrupt.listen()
                    number = self._step(phase, self.step - begin, metrics, interrupt)
                    bar.update()
                    if number is not None:
                        log.info("%s: saving; once more leaves at once", signal.Signals(number).name)
                        self.save(required=True)
                        raise Stopped(number)
                begin += phase.steps

    def _agreed(self, interrupt, failure):
        """The signal to stop for, or None; the same on all ranks, whenever it reaches each of them.

        In the same message the ranks tell each other whether a step failed. Raises this rank's own
        `failure`, or PeerError where only others failed.
        """
        if self.device.world > 1:
            numbers = (signal.SIGTERM, signal.SIGINT)
            signals = [float(interrupt.number == number) for number in numbers]
            failed = [float(failure is not None and rank == self.device.rank) for rank in self._ranks]
            counts = self.device.all_sum(*signals, *failed)
            ranks = [str(rank) for rank in self._ranks if counts[len(numbers) + rank]]
            if ranks and failure is None:
                raise PeerError(f"stopped because of an error on rank {', '.join(ranks)}")
            number = next((number for number, count in zip(numbers, counts, strict=False) if count), None)
        else:
            number = interrupt.number
        if failure is not None:
            raise failure
        return number

    def _batch(self, phase, step):
        """(batch, None); with several processes, (the batch before, the error) if it can't be read.

        The other ranks wait for this one inside the step, so it has to take part once more. The result is
        thrown away: `_agreed` stops all ranks before anything is saved.
        """
        if self.device.world == 1:
            return phase.batch(step), None
        first = self._last_batch is None or self._last_batch[0] is not phase
        try:
            with self.device.together() if first else contextlib.nullcontext():
                self._last_batch = phase, phase.batch(step)
        except Exception as error:
            if first:
                raise
            return self._last_batch[1], error
        return self._last_batch[1], None

    def _step(self, phase, step, metrics, interrupt):
        """One step and what is due after it; returns the signal to stop for, or None."""
        phase.step = step
        begun = time.perf_counter()
        batch, failure = self._batch(phase, step)
        values = self.cell.train_step(phase, batch)
        loss = float(values["loss"])
        if failure is None and not math.isfinite(loss):
            failure = self._non_finite(phase, f"the loss became {loss}")
        number = self._agreed(interrupt, failure)
        self.trained_seconds += time.perf_counter() - begun
        self.trained_samples += sum(len(images) for images, _ in batch.values()) * self.device.world
        if self.step == 0:
            log.info("first training step done %.1f s after the start", self.seconds())
        self.step += 1
        interrupt.something_to_save = True
        epoch_ends = (step + 1) % phase.steps_per_epoch == 0 or step + 1 == phase.steps
        if step % self.config.log_interval == 0 or epoch_ends:
            values = {name: float(value) for name, value in values.items()}
            log.info(self.cell.log_line(phase, values))
            metrics.write("train", self.step, values, phase=phase.name, seconds=self.seconds())
        self._evaluate_and_save(phase, epoch_ends, metrics)
        return number if self.device.world > 1 else interrupt.number

    def _saves(self, phase, epoch_ends):
        """Whether a checkpoint is due after this step, which is the last of its epoch or not."""
        every, epochs = self.config.save_checkpoint_steps, self.config.save_checkpoint_epochs
        if every:
            return self.step % every == 0
        done = phase.step + 1
        return epoch_ends and (done == phase.steps or done // phase.steps_per_epoch % epochs == 0)

    def _evaluate_and_save(self, phase, epoch_ends, metrics):
        interval, last = self.config.eval_interval, self.step == self.total_steps
        saves = last or self._saves(phase, epoch_ends)
        if saves:
            with self.device.together():
                self._check_finite_weights(phase)
        if last or (self.step % interval == 0 if interval else epoch_ends):
            self.evaluate(phase, metrics)
        if saves:
            self.save(required=last)

    def _check_finite_weights(self, phase):
        """The loss of a step is that of the weights before it; what is saved are those after it."""
        for parameter in self.cell.whole.get_parameters():
            if not np.isfinite(parameter.asnumpy()).all():
                raise self._non_finite(phase, f"{parameter.name} became infinite or not a number")

    def _non_finite(self, phase, what):
        """The UserError for it, which names the last good checkpoint."""
        # A checkpoint written after the last finite loss holds the weights that gave the one that is not.
        now = checkpoint.step_path(self.output_dir, self.step)
        good = [path for path in checkpoint.listed(self.output_dir) if path < now]
        kept = f"the last good checkpoint is {good[0]}" if good else "there is no good checkpoint"
        return UserError(
            f"{what} in phase {phase.name}, step {phase.step + 1} of {phase.steps}; {kept}; "
            "start again with a lower learning rate and another --output_dir"
        )

    def evaluate(self, phase, metrics):
        """Validation figures and test accuracies; the target's is reported, never used."""
        broadcast_parameters([self.cell.whole], self.device, statistics_only=True)
        self.cell.adapt_statistics(phase)
        figures = self.cell.validate(phase)
        if figures:
            metrics.write("validation", self.step, figures, phase=phase.name, seconds=self.seconds())
        accuracies = self.evaluator.accuracies(self.test_sets)
        self.oracle = {name: max(value, self.oracle.get(name, 0)) for name, value in accuracies.items()}
        seconds = self.seconds()
        top5 = self.evaluator.top5_accuracy
        named = {f"{domain}_accuracy": value for domain, value in accuracies.items()}
        named |= {f"{domain}_top5_accuracy": value for domain, value in top5.items()}
        metrics.write("test", self.step, named, phase=phase.name, seconds=seconds)
        shown = ", ".join(f"{domain} {value:.4f}" for domain, value in accuracies.items())
        log.info("step %d of %d, %.0f s: test accuracy %s", self.step, self.total_steps, seconds, shown)
        for line in self.cell.accuracy_lines(accuracies, top5):
            log.info(line)
        self.accuracies = accuracies
        if self.probe and self.device.is_main:
            self.judged = self.probe.measure()
            about = {"phase": phase.name, "seconds": self.seconds(), "steps": self.total_steps}
            metrics.write("selection", self.step, self.judged, **about)

    def result(self):
        """The content of result.json."""
        rate = self.trained_samples / self.trained_seconds if self.trained_seconds else 0.0
        return result.build(
            self.config,
            self.device,
            self.accuracies,
            steps=self.step,
            seconds=self.seconds(),
            samples_per_second=rate,
            oracle=self.oracle,
            top5=self.evaluator.top5_accuracy,
            task=self.cell.task,
            judged=self.judged,
        )


def _reason(error):
    return error.strerror or str(error)


def _mend(error):
    """What helps against this OSError."""
    return "make room" if error.errno in checkpoint.DISK_FULL else "put that right"


def run(build, config, device, started):
    """Train, evaluate and write everything a run writes.

    Args:
        build: function () -> (Trainer, {domain: test loader}); called once the run holds its folder.
        config, device: as resolved and set up.
        started: `time.perf_counter()` at the start of the process; what "seconds" counts from.

    Returns:
        The process's exit status: 0, or 128 + the signal's number when it was stopped by one.
    """
    with contextlib.ExitStack() as stack:
        with device.together():
            folder = stack.enter_context(run_folder.claim(config.output_dir, device.is_main))
            interrupt = stack.enter_context(Interrupt())
            if device.is_main:
                run_folder.check_contents(folder, config)
        with device.together():
            run_log.setup(folder, device.rank, append=config.resume)
            for note in device.notes:
                log.info(note)
            cell, test_sets = build()
            synchronise_batch_norm(cell.state().values(), config, device)
            this = Run(cell, test_sets, config, device, started)
            if config.resume and device.is_main:
                this.resume()
        agreement.same(_data_facts(this), device, "give every host the same data")
        this.share_state()
        cell.ready()
        if device.is_main:
            config.write(folder / "config.yaml")
        metrics = run_log.Metrics(
            folder, device.is_main, config.tensorboard, keep_until=this.step if config.resume else None
        )
        try:
            status = _train_and_finish(this, cell, metrics, interrupt)
        except Exception:
            this.outbox.send()
            raise
        finally:
            metrics.close()
        # No rank leaves before the last copy is out: msrun would end the others.
        with device.together() if config.enable_modelarts else contextlib.nullcontext():
            this.outbox.finish()
        return status


def _digest(cell):
    """A digest of all parameters of a cell, which must be the same on every rank."""
    values = hashlib.sha256()
    for parameter in cell.get_parameters():
        values.update(parameter.asnumpy().tobytes())
    return values.hexdigest()[:16]


def _data_facts(this):
    """{name: text} about the data of a run, that every rank must read from its own disk."""
    return {
        "classes": ", ".join(map(str, this.classes)),
        "steps": ", ".join(f"{phase.name} {phase.steps}" for phase in this.cell.phases),
        "test domains": ", ".join(this.test_sets),
    }


def _train_and_finish(this, cell, metrics, interrupt):
    config, device, folder = this.config, this.device, this.output_dir
    _log_plan(cell, config)
    plot_features = config.plot_features or config.report
    if plot_features:
        sets = page.shown_sets(cell, this.test_sets)
        cell.ready()  # on all ranks: it may wait for them
        plot_features = device.is_main
    if plot_features:
        before = plots.collect_features(cell, sets)
    try:
        this.train(metrics, interrupt)
    except Stopped as stop:
        log.info("%s after step %d; continue with --resume true", stop, this.step)
        return stop.status
    if this.accuracies is None:
        this.evaluate(cell.phases[-1], metrics)
    log.info("weights after step %d: %s", this.step, _digest(cell.whole))
    if not device.is_main:
        return 0
    checkpoint.save_cell(cell.whole, folder / "network.ckpt", this.meta())
    for name, part in cell.published_files().items():
        checkpoint.save_cell(part, folder / name, {"format": checkpoint.FORMAT, "classes": this.classes})
    content = this.result()
    result.write(content, folder / "result.json")
    if this.probe:
        this.probe.save(folder)
    try:
        plots.curves(folder)
        if plot_features:
            plots.embedding(before, plots.collect_features(cell, sets), folder / "features.png")
        if config.report:
            page.write(cell, sets, folder, content)
    except (UserError, OSError) as error:  # a package that is missing, a full disk: the run is done
        log.warning("warning: not all pictures were drawn: %s", error)
    for domain, value in this.accuracies.items():
        log.info("%s domain accuracy: %.4f", domain, value)
    log.info("finished %d steps in %.0f s; results in %s", this.step, this.seconds(), folder)
    return 0


def _log_plan(cell, config):
    weights = sum(p.size for p in cell.network.trainable_params())
    plan = ", ".join(f"{phase.name} {phase.steps} steps" for phase in cell.phases)
    log.info("%s (%s): %s trainable parameters; %s", config.experiment, config.method, f"{weights:,}", plan)
