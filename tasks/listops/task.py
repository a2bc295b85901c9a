"""ListOps: classification of expressions by their value, 0..9."""

from datamodules.listops import num_classes, vocab_size
from msssm import Backbone
from tasks.listops.tokens import TokenTask


class ListOpsTask(TokenTask):
    """`TokenTask` with ListOps' tokens and its ten values, and the mean over the true positions.

    Args:
        backbone: the stack of sequence layers.
        lr: peak learning rate.
        weight_decay: of weights that are neither biases, norms nor SSM parameters.
        ssm_lr: peak learning rate of the state space models' A, step sizes and D; None for `lr`.
        warmup_epochs: length of the linear warm-up, in epochs.
    """

    def __init__(
        self,
        backbone: Backbone,
        lr: float = 3e-3,
        weight_decay: float = 0.03,
        ssm_lr: float | None = None,
        warmup_epochs: float = 1.0,
    ) -> None:
        """Builds the classifier. Raises ValueError for options out of their range."""
        super().__init__(backbone, vocab_size, num_classes, "mean", lr, weight_decay, ssm_lr, warmup_epochs)
        self.save_hyperparameters()
