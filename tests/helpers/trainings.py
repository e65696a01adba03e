"""Trainings as rows, and two of them compared."""

import csv

from rdp_bench.train.loop import Training


def rows(training: Training) -> list[dict[str, str]]:
    """train.csv but for the time that it took."""
    with (training.out / "train.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
