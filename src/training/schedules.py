"""Schedules as pure functions of the step."""

import math

ONE_CYCLE = "one_cycle"
DECAY_MODES = ("cosine", "step", "poly", "constant", ONE_CYCLE)
RATE_MODES = ("constant", ONE_CYCLE, "cosine")
STEP_AT = (0.3, 0.6, 0.8)  # shares of all steps at which mode "step" divides the rate by ten


def reversal_strength(progress, gamma=10.0):
    """λ(p) = 2 / (1 + exp(-gamma·p)) - 1, from 0 at p = 0 towards 1 (Ganin & Lempitsky 2015, section 4).

    progress: share of the phase done, in [0, 1].
    """
    return 2.0 / (1.0 + math.exp(-gamma * progress)) - 1.0


def one_cycle(step, steps, warm=0.3, start=1 / 25, end=1e-4):
    """Factor of the peak rate: cosine up from `start` over the first `warm` share, cosine down to start·end.

    Source: Smith & Topin 2017, arXiv 1708.07120, with the cosine form and ratios in common use.
    """
    last = max(1, steps - 1)
    turn = warm * last
    if step < turn:
        low, high, progress = start, 1.0, step / turn
    else:
        low, high, progress = start * end, 1.0, 1.0 - min(1.0, (step - turn) / max(1e-9, last - turn))
    return low + (high - low) * 0.5 * (1.0 - math.cos(math.pi * progress))


def schedule(name, step, steps):
    """Factor of the learning rate at `step` (0-based) of `steps`; name: one of RATE_MODES."""
    if name == ONE_CYCLE:
        return one_cycle(step, steps)
    return 0.5 * (1.0 + math.cos(math.pi * step / max(1, steps))) if name == "cosine" else 1.0


def warmup_and_decay(mode, step, steps, warmup_steps, lr_init, lr_max, lr_end):
    """Learning rate at `step` (0-based) of `steps`: a linear warm-up, then the decay that `mode` names.

    The warm-up rises from `lr_init`, which is never reached itself, to `lr_max` at step `warmup_steps` - 1.
    After it, with p the share of the remaining steps done, in [0, 1):

        cosine    lr_end + (lr_max - lr_end)·(1 + cos(π·p)) / 2 (Loshchilov & Hutter 2017, arXiv 1608.03983)
        poly      lr_end + (lr_max - lr_end)·(1 - p)²
        step      lr_max, divided by 10 at 30, 60 and 80 % of all steps, warm-up included
        constant  lr_max
        one_cycle see `one_cycle`: it has its own warm-up and end, and reads `lr_max` only
    """
    if mode == ONE_CYCLE:
        return lr_max * one_cycle(step, steps)
    if step < warmup_steps:
        return lr_init + (lr_max - lr_init) * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if mode == "cosine":
        return lr_end + (lr_max - lr_end) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if mode == "poly":
        return lr_end + (lr_max - lr_end) * (1.0 - progress) ** 2
    if mode == "step":
        return lr_max * 0.1 ** sum(step >= share * steps for share in STEP_AT)
    return lr_max
