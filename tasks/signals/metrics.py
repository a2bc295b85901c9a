"""The metrics of each target, of torchmetrics: over all samples, exact under DDP."""

from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MultilabelAUROC
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from datamodules.arrays.source import Target

# Each metric with its best value.
BEST: dict[Target, dict[str, str]] = {
    "class": {"accuracy": "max", "macro_f1": "max"},
    "labels": {"auroc": "max"},
    "regression": {"mae": "min", "r2": "max"},
    "step": {"accuracy": "max"},
}


class MacroAUROC(MultilabelAUROC):
    """Mean AUROC of the labels that have both positives and negatives; torchmetrics would count the others as 0."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """The mean; NaN if no label has both."""
        scores, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        both = [k for k in range(self.num_labels) if 0 < target[:, k].sum() < len(target)]
        each = [binary_auroc(scores[:, k], target[:, k]) for k in both]
        return sum(each, scores.new_zeros(())) / len(each) if each else scores.new_full((), float("nan"))


def metrics(target: Target, outputs: int) -> nn.ModuleDict:
    """The metrics of a target by their names."""
    if target == "labels":
        return nn.ModuleDict({"auroc": MacroAUROC(outputs)})
    if target == "regression":
        return nn.ModuleDict({"mae": MeanAbsoluteError(), "r2": R2Score()})
    accuracy = MulticlassAccuracy(outputs, average="micro")
    if target == "step":
        return nn.ModuleDict({"accuracy": accuracy})
    return nn.ModuleDict({"accuracy": accuracy, "macro_f1": MulticlassF1Score(outputs, average="macro")})
