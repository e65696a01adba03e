"""Plots of train.csv: losses and validation results."""

from pathlib import Path

from rdp_bench.train.scalars import read_csv

_NOT_LOSSES = {"step", "seconds", "skipped", "score"}


def draw(out: Path) -> Path | None:
    """Write OUT/curves.svg from OUT/train.csv; None if there is too little to draw.

    Raises:
        OSError: a file cannot be read or written.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    rows = read_csv(out / "train.csv")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    groups = {
        "loss": [c for c in columns if c not in _NOT_LOSSES and not c.startswith(("agree_", "psnr_"))],
        "agreement with the clean view, %": [c for c in columns if c.startswith("agree_")],
        "PSNR to the clean image, dB": [c for c in columns if c.startswith("psnr_")],
    }
    shown = {title: names for title, names in groups.items() if names}
    if len(rows) < 2 or not shown:
        return None
    figure = Figure(figsize=(3.6 * len(shown), 2.8), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            steps, values = zip(*points, strict=True)
            label = name.partition("_")[2] or name
            sns.lineplot(x=steps, y=values, label=label, linewidth=1, estimator=None, ax=axes)
        axes.set(title=title, xlabel="step")
        if title == "loss":
            axes.set_yscale("log")
        axes.title.set_fontsize(9)
        axes.legend(fontsize=7, frameon=False)
        axes.grid(alpha=0.2)
    temporary = out / "curves.tmp.svg"
    try:
        figure.savefig(temporary)
        return temporary.replace(out / "curves.svg")
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
