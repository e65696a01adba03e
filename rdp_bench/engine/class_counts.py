"""Whether the networks of a run and its data set count the same classes."""

from dataclasses import dataclass, field

from rdp_bench.errors import UsageError
from rdp_bench.protocols import Dataset, classes_of


class ClassesError(UsageError):
    """Class numbers that would not mean the same."""


@dataclass(frozen=True)
class ClassCounts:
    """The numbers of classes of the networks of a run, by their names."""

    dataset: Dataset
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, classes: int) -> None:
        """Compare a network with the data set and with the networks that were added before.

        Raises:
            ClassesError: its outputs are not the classes that the data set's labels count, or not those of another
                network.
        """
        expected = classes_of(self.dataset)
        if expected is not None and classes != expected:
            raise ClassesError(
                f"model '{name}' has {classes} classes, data set {self.dataset.name} has labels of {expected}: class "
                "numbers would not mean the same; use a network of the data set's classes"
            )
        for other, count in self.counts.items():
            if count != classes:
                raise ClassesError(
                    f"model '{name}' has {classes} classes and '{other}' {count}: class numbers would not mean the "
                    "same; use networks of one set of classes"
                )
        self.counts[name] = classes
        worst = max(self.dataset.labels)
        if worst >= classes:
            raise ClassesError(
                f"label {worst} of data set {self.dataset.name} is beyond the {classes} classes of {name}"
            )
