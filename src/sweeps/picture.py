"""rules.png: what each rule says of each run, beside the run's accuracy on the target."""

from src.evaluation.plots import pyplot


def draw(pool, path):
    """Draw one panel for each rule of a Pool whose accuracies are known."""
    plt = pyplot()
    columns = min(3, len(pool.table))
    rows = -(-len(pool.table) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3.4 * rows), squeeze=False)
    for panel in axes.flat[len(pool.table) :]:
        panel.axis("off")
    for panel, (name, values) in zip(axes.flat, pool.table.items(), strict=False):
        known = [(v, a) for v, a in zip(values, pool.accuracies, strict=True) if v is not None]
        if known:
            panel.scatter(*zip(*known, strict=True), s=14)
        place = pool.choice(name)
        if place is not None:
            panel.scatter(
                [values[place]], [pool.accuracies[place]], s=60, facecolors="none", edgecolors="red"
            )
        panel.set(xlabel=name, ylabel="target accuracy, % (oracle)")
        panel.grid(alpha=0.3)
    figure.suptitle("Rules of selection: the ring is the run that a rule chooses")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
