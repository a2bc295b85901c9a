"""The benchmarks of the table: for each task its metric, its data, and the paper's numbers on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tasks.metrics.intervals import wilson
from tasks.table.runs import Run
from tasks.table.spec import Number

_LRA = {"min_length": 500, "max_length": 2000, "max_depth": 10, "max_args": 10, "train_size": 96_000}
_CIFAR = {"train": 45_000, "val": 5_000, "test": 10_000}


def _accuracy_interval(run: Run) -> tuple[float, float]:
    return wilson(float(run.metrics["test"]["test/accuracy"]), run.counts["test"])


@dataclass(frozen=True)
class Benchmark:
    """One task in the table.

    Attributes:
        task: folder of its runs, below `runs/`.
        full_scale: whether a run's data are the benchmark's own and complete: only then is the paper's number
            comparable.
        data_name: a run's data in a column's header, which says if they are reduced or synthetic.
        describe: a phrase on a run's data.
        bound: a trivial answer that a model must beat, with its name.
        training: a phrase on how many steps of how many samples a training takes.
        paper_name: the paper's data in a column's header; empty if the paper has none.
        paper_column: which of a row's several numbers in the paper is on these data.
        paper_digits: decimals of the paper's numbers.
        metric: key of the test metrics in metrics.json; a number between 0 and 1.
        measure: name of the metric in the table.
        percent: whether it is shown in percent.
        interval: 95 % interval of one run, over its test samples.
        interval_over: what that interval is over.
    """

    task: str
    full_scale: Callable[[Run], bool]
    data_name: Callable[[Run], str]
    describe: Callable[[Run], str]
    bound: Callable[[Run], tuple[str, float]]
    training: Callable[[Run], str] = lambda run: f"{run.metrics['steps']:,} steps of {run.data['batch_size']} samples"
    paper_name: Callable[[Run], str] = lambda run: ""
    paper_column: Callable[[Run], str] = lambda run: ""
    paper_digits: int = 1
    metric: str = "test/accuracy"
    measure: str = "accuracy"
    percent: bool = True
    interval: Callable[[Run], tuple[float, float]] = _accuracy_interval
    interval_over: str = "over the test samples"

    def value(self, run: Run) -> float:
        """Test metric of a run."""
        return float(run.metrics["test"][self.metric])

    def show(self, value: float) -> str:
        """Formats a value of the metric."""
        return f"{100 * value:.1f}" if self.percent else f"{value:.3f}"

    @property
    def unit(self) -> str:
        """Unit of the metric, as the end of a header."""
        return ", %" if self.percent else ""

    def paper(self, run: Run, number: Number | None) -> str:
        """Formats the paper's number for a row; empty if it has none on these data."""
        if isinstance(number, dict):
            number = number.get(self.paper_column(run))
        return "" if number is None else f"{number:.{self.paper_digits}f}"


def _data(run: Run) -> Any:
    return run.metrics["data"]


def _is_lra(run: Run) -> bool:
    return all(run.data[key] == value for key, value in _LRA.items())


def _listops_training(run: Run) -> str:
    """Steps of short expressions, where every epoch begins with them, and of the others."""
    steps, batch_size, short = run.metrics["steps"], run.data["batch_size"], run.data.get("short_size", 0)
    if not short:
        return f"{steps:,} steps of {batch_size} samples"
    size = run.data["short_batch_size"] or batch_size
    first = -(-short // size) * run.metrics["epochs"]
    return f"{first:,} steps of {size} short expressions, {steps - first:,} steps of {batch_size} samples"


def _is_ptbxl(run: Run) -> bool:
    return not _data(run)["synthetic"]


def _is_cifar(run: Run) -> bool:
    return run.counts == _CIFAR and not run.data["greyscale"]


def _is_imagenet(run: Run) -> bool:
    return run.counts["train"] == 1_281_167 and run.counts["test"] == 50_000


def _is_imagenette(run: Run) -> bool:
    counts = run.counts
    return (counts["train"] + run.data["holdout"], counts["test"], _data(run)["classes"]) == (9_469, 3_925, 10)


def _images(
    task: str, full_scale: Callable[[Run], bool], data_name: Callable[[Run], str], paper_name: str = ""
) -> Benchmark:
    return Benchmark(
        task,
        full_scale,
        data_name,
        describe=lambda run: f"{_data(run)['classes']} classes",
        bound=lambda run: ("chance", 1 / _data(run)["classes"]),
        paper_name=lambda run: paper_name,
    )


def _tokens(task: str, name: str) -> Benchmark:
    """A task without hierarchy, which the paper does not have."""
    return Benchmark(
        task,
        full_scale=lambda run: False,
        data_name=lambda run: name,
        describe=lambda run: (
            f"length {run.data['length']}, {run.data['items']} of {run.data['symbols']} symbols to select"
        ),
        bound=lambda run: ("chance", 1 / run.data["symbols"]),
    )


BENCHMARKS = (
    Benchmark(
        "listops",
        _is_lra,
        data_name=lambda run: (
            "LRA ListOps"
            if _is_lra(run)
            else f"ListOps of {run.data['min_length']} to {run.data['max_length']} tokens (reduced scale)"
        ),
        describe=lambda run: (
            f"{run.data['min_length']} < length < {run.data['max_length']}, depth at most {run.data['max_depth']}, "
            f"at most {run.data['max_args']} arguments, mean length {_data(run)['mean_length']['train']:.0f}"
        ),
        bound=lambda run: ("root operator alone", _data(run)["root_operator_accuracy"]),
        training=_listops_training,
        paper_name=lambda run: "full LRA ListOps",
        paper_digits=2,
    ),
    _images(
        "scifar",
        _is_cifar,
        lambda run: "sequential CIFAR-10" + ("" if _is_cifar(run) else " (variant)"),
        "sequential CIFAR-10",
    ),
    _images("digits", lambda run: False, lambda run: "8 x 8 digits (not CIFAR-10)", "sequential CIFAR-10"),
    _images(
        "imagenet",
        _is_imagenet,
        lambda run: "ImageNet-1K" if _is_imagenet(run) else "a small image folder (not ImageNet-1K)",
        "ImageNet-1K",
    ),
    _images(
        "imagenette",
        _is_imagenette,
        lambda run: "Imagenette" if _is_imagenette(run) else "a small image folder (not Imagenette)",
    ),
    Benchmark(
        "ptbxl",
        _is_ptbxl,
        data_name=lambda run: (
            f"{'PTB-XL' if _is_ptbxl(run) else 'synthetic ECGs (not PTB-XL)'}, {_data(run)['label_set']} labels"
        ),
        describe=lambda run: (
            f"{_data(run)['label_set']} labels, {run.data['sampling_rate']} Hz, "
            f"{_data(run)['dropped_without_label']} records without such a label dropped, "
            f"{_data(run)['quarantined']} corrupt"
        ),
        bound=lambda run: ("chance", 0.5),
        paper_name=lambda run: f"PTB-XL, {_data(run)['label_set']} labels",
        paper_column=lambda run: str(_data(run)["label_set"]),
        paper_digits=3,
        metric="test/auroc",
        measure="macro AUROC",
        percent=False,
        interval=lambda run: tuple(run.metrics["report"]["interval_95"]["patients"]["auroc"]),
        interval_over="bootstrap over the patients of the test fold",
    ),
    _tokens("copying", "selective copying"),
    _tokens("counting", "marked counting"),
)
