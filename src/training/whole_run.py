"""One training run from its start to its end: its folder, its data, the loop, and what it leaves behind."""

import contextlib
import hashlib
import logging

from model_utils import agreement, checkpoint, run_log
from model_utils.device import synchronise_batch_norm
from model_utils.errors import UserError
from src.evaluation import plots, result
from src.report import page
from src.training import run_folder
from src.training.interrupt import Interrupt, Stopped
from src.training.loop import Run

log = logging.getLogger("run")


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
            run_folder.check_outside(config.output_dir, config)
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
        with device.together():
            if device.is_main:
                with checkpoint.atomic(folder / "config.yaml") as temporary:
                    config.write(temporary)
            metrics = run_log.Metrics(
                folder,
                device.is_main,
                config.tensorboard,
                keep_until=this.step if config.resume else None,
                evaluated_again=config.resume and this.step == this.total_steps,
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
        this.evaluate([phase for phase in cell.phases if phase.steps][-1], metrics)
    log.info("weights after step %d: %s", this.step, _digest(cell.whole))
    if not device.is_main:
        return 0
    checkpoint.save_cell(cell.whole, folder / "network.ckpt", this.meta())
    for name, part in cell.published_files().items():
        checkpoint.save_cell(part, folder / name, {"format": checkpoint.FORMAT, "classes": this.classes})
    content = this.result()
    if this.probe:
        this.probe.save(folder)
    result.write(content, folder / "result.json")  # after all that goes with it: it marks the run as finished
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
