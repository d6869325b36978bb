"""Schedules as pure functions of the step."""

import math

ONE_CYCLE = "one_cycle"


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
    """Factor of the learning rate at `step` (0-based) of `steps`; name: "constant" or "one_cycle"."""
    return one_cycle(step, steps) if name == ONE_CYCLE else 1.0
