"""Optimizer groups: weight decay, and a learning rate of their own for state space parameters."""

from typing import Any

from torch import nn

_NORMS = (nn.BatchNorm1d, nn.LayerNorm)


def param_groups(model: nn.Module, lr: float, weight_decay: float, ssm_lr: float | None = None) -> list[dict[str, Any]]:
    """Splits parameters into the optimizer groups "decay", "no_decay" and "ssm", without empty ones.

    A, the step sizes and D of the state space models (a module's `ssm_parameters`) have the learning rate `ssm_lr` and
    no weight decay; norms and biases have no weight decay.

    Args:
        model: the module to train.
        lr: learning rate.
        weight_decay: Weight decay of the group "decay".
        ssm_lr: learning rate of the group "ssm"; None for `lr`.
    """
    decay, no_decay, ssm = [], [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name in getattr(module, "ssm_parameters", ()):
                ssm.append(parameter)
            elif isinstance(module, _NORMS) or name == "bias":
                no_decay.append(parameter)
            else:
                decay.append(parameter)
    groups = [
        {"name": "decay", "params": decay, "lr": lr, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "lr": lr, "weight_decay": 0.0},
        {"name": "ssm", "params": ssm, "lr": lr if ssm_lr is None else ssm_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
