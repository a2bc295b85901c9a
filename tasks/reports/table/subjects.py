"""What the table says about each task: its metric, its scale, the paper's column, and how to read the numbers."""

from tasks.experiments.table import Number
from tasks.metrics.intervals import wilson
from tasks.reports.table.runs import Run


class Subject:
    """One task, as the table shows it.

    Attributes:
        task: folder of its runs, below `runs/`.
        metric: key of the test metrics in metrics.json; a number between 0 and 1.
        measure: how the column calls it.
        percent: whether it is shown in percent.
        paper_digits: digits behind the point of the paper's numbers.
        interval_over: what the interval of one run is over.
    """

    task: str
    metric = "test/accuracy"
    measure = "accuracy"
    percent = True
    paper_digits = 1
    interval_over = "over the test samples"

    def value(self, run: Run) -> float:
        return float(run.metrics["test"][self.metric])

    def show(self, value: float) -> str:
        return f"{100 * value:.1f}" if self.percent else f"{value:.3f}"

    @property
    def unit(self) -> str:
        return ", %" if self.percent else ""

    def interval(self, run: Run) -> tuple[float, float]:
        """95 % of one run, over its test samples."""
        return wilson(self.value(run), run.counts["test"])

    def full_scale(self, run: Run) -> bool:
        """Whether the data are the benchmark's own, whole: only then are the paper's numbers of the same kind."""
        raise NotImplementedError

    def data_name(self, run: Run) -> str:
        """The data in a column's header, reduced or synthetic data called so."""
        raise NotImplementedError

    def paper_name(self, run: Run) -> str:
        """The paper's data in a column's header."""
        raise NotImplementedError

    def describe(self, run: Run) -> str:
        """A sentence on the data."""
        raise NotImplementedError

    def bound(self, run: Run) -> tuple[str, float] | None:
        """A trivial answer that a model has to beat, with its name."""
        return None

    def paper(self, run: Run, number: Number | None) -> str:
        """The paper's number for a row, as it prints it; empty if it has none of these data."""
        if isinstance(number, dict):
            number = number.get(self.paper_column(run))
        return "" if number is None else f"{number:.{self.paper_digits}f}"

    def paper_column(self, run: Run) -> str:
        """Which of the paper's numbers is of these data, where a row has several."""
        return ""


class ListOps(Subject):
    task, paper_digits = "listops", 2
    _full = {"min_length": 500, "max_length": 2000, "max_depth": 10, "max_args": 10, "train_size": 96_000}  # noqa: RUF012

    def full_scale(self, run: Run) -> bool:
        return all(run.data[key] == value for key, value in self._full.items())

    def data_name(self, run: Run) -> str:
        if self.full_scale(run):
            return "LRA ListOps"
        return f"ListOps of {run.data['min_length']} to {run.data['max_length']} tokens (reduced scale)"

    def paper_name(self, run: Run) -> str:
        return "full LRA ListOps"

    def describe(self, run: Run) -> str:
        return (
            f"{run.data['min_length']} < length < {run.data['max_length']}, depth at most {run.data['max_depth']}, "
            f"at most {run.data['max_args']} arguments, mean length {run.metrics['data']['mean_length']['train']:.0f}"
        )

    def bound(self, run: Run) -> tuple[str, float]:
        """The best answer per root operator, which needs no nesting."""
        return "root operator alone", run.metrics["data"]["root_operator_accuracy"]


class PTBXL(Subject):
    task, paper_digits = "ptbxl", 3
    metric, measure, percent = "test/auroc", "macro AUROC", False
    interval_over = "bootstrap over the patients of the test fold"

    def interval(self, run: Run) -> tuple[float, float]:
        """Bootstrap over patients."""
        low, high = run.metrics["report"]["interval_95"]["patients"]["auroc"]
        return low, high

    def full_scale(self, run: Run) -> bool:
        return not run.metrics["data"]["synthetic"]

    def data_name(self, run: Run) -> str:
        name = "PTB-XL" if self.full_scale(run) else "synthetic ECGs (not PTB-XL)"
        return f"{name}, {run.metrics['data']['label_set']} labels"

    def paper_name(self, run: Run) -> str:
        return f"PTB-XL, {run.metrics['data']['label_set']} labels"

    def paper_column(self, run: Run) -> str:
        return str(run.metrics["data"]["label_set"])

    def describe(self, run: Run) -> str:
        data = run.metrics["data"]
        return (
            f"{data['label_set']} labels, {run.data['sampling_rate']} Hz, {data['dropped_without_label']} records "
            f"without such a label dropped, {data['quarantined']} corrupt"
        )

    def bound(self, run: Run) -> tuple[str, float]:
        return "chance", 0.5


class Images(Subject):
    """Accuracy over image classes."""

    def describe(self, run: Run) -> str:
        return f"{run.metrics['data']['classes']} classes"

    def bound(self, run: Run) -> tuple[str, float]:
        return "chance", 1 / run.metrics["data"]["classes"]


class Digits(Images):
    task = "digits"

    def full_scale(self, run: Run) -> bool:
        return False

    def data_name(self, run: Run) -> str:
        return "8 x 8 digits (not CIFAR-10)"

    def paper_name(self, run: Run) -> str:
        return "sequential CIFAR-10"


class SequentialCIFAR(Images):
    task = "scifar"

    def full_scale(self, run: Run) -> bool:
        return run.counts == {"train": 45_000, "val": 5_000, "test": 10_000} and not run.data["greyscale"]

    def data_name(self, run: Run) -> str:
        return "sequential CIFAR-10" + ("" if self.full_scale(run) else " (variant)")

    def paper_name(self, run: Run) -> str:
        return "sequential CIFAR-10"


class ImageNet(Images):
    task = "imagenet"

    def full_scale(self, run: Run) -> bool:
        return run.counts["train"] == 1_281_167 and run.counts["test"] == 50_000

    def data_name(self, run: Run) -> str:
        return "ImageNet-1K" if self.full_scale(run) else "a small image folder (not ImageNet-1K)"

    def paper_name(self, run: Run) -> str:
        return "ImageNet-1K"


class Selection(Subject):
    """A task without hierarchy, which the paper does not have."""

    def full_scale(self, run: Run) -> bool:
        return False

    def describe(self, run: Run) -> str:
        data = run.data
        return f"length {data['length']}, {data['items']} of {data['symbols']} symbols to select"

    def bound(self, run: Run) -> tuple[str, float]:
        return "chance", 1 / run.data["symbols"]


class Copying(Selection):
    task = "copying"

    def data_name(self, run: Run) -> str:
        return "selective copying"


class Counting(Selection):
    task = "counting"

    def data_name(self, run: Run) -> str:
        return "marked counting"


SUBJECTS: tuple[Subject, ...] = (ListOps(), SequentialCIFAR(), Digits(), ImageNet(), PTBXL(), Copying(), Counting())
