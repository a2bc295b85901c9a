"""A pretrained ECG model learns another label set from a few hundred records. About a minute on one core.

    python examples/fine_tuning.py                # generated ECGs
    python examples/fine_tuning.py --root data    # PTB-XL itself, in data/ptbxl

The model's encoder of 12 leads and its backbone are kept, its head is new; the same network from a random start learns
beside it. (Of PTB-XL the model has seen these records before, with other labels; your own will be new to it.)
`msssm.Backbone.from_pretrained(name)` is the backbone alone, for other inputs.
"""

import argparse

import torch
from torch import Tensor, nn

from datamodules import PTBXLDataModule
from msssm import Backbone, SequenceClassifier, param_groups
from msssm.pretrained import layer_factory
from tasks.ecg.recordings.inference import aggregate
from tasks.ecg.recordings.model import read_model
from tasks.metrics.ecg import auroc, macro


def train(model: SequenceClassifier, data: PTBXLDataModule, records: int, steps: int) -> None:
    """Trains on random crops of the first records of the training folds."""
    split = data.split("train")
    offsets = split.signals.shape[1] - data.window + 1
    optimizer = torch.optim.AdamW(param_groups(model, lr=5e-3, weight_decay=0.05))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for step in range(steps):
        keys = torch.randint(min(records, len(split)), (32,)) + len(split) * torch.randint(offsets, (32,))
        batch = split[keys.tolist()]
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch.x), batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.3f}")


@torch.inference_mode()
def test(model: SequenceClassifier, data: PTBXLDataModule) -> float:
    """Macro AUROC on the test fold, of the largest probability over a record's windows."""
    target: list[Tensor] = []
    logits: list[Tensor] = []
    for batch in data.test_dataloader():
        target.append(batch.y)
        logits.append(aggregate(model(batch.x).unflatten(0, (len(batch.y), -1)), "max"))
    return float(macro(auroc(torch.cat(target).numpy(), torch.cat(logits).numpy())))


def main(args: list[str] | None = None) -> dict[str, float]:
    """Trains both, and returns their macro AUROC on the test fold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ptbxl-small", help="a shipped model's name, or a folder")
    parser.add_argument("--root", help="folder with ptbxl/; default: generated ECGs")
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args(args)
    data = PTBXLDataModule(
        options.root or "data",
        synthetic=None if options.root else 600,
        label_set="superdiagnostic",
        crop=250,
        stride=250,
    )
    data.prepare_data()
    data.setup("fit")
    pretrained = read_model(options.model)
    data.mean, data.std = pretrained.answers.mean, pretrained.answers.std  # the scale that the encoder knows
    torch.manual_seed(0)
    encoder, backbone, classes = pretrained.network.encoder, pretrained.network.backbone, len(data.classes)
    fresh = Backbone(**{**backbone.config, "layer": layer_factory(backbone.config["layer"])})
    scores = {}
    for start, model in {
        "pretrained": SequenceClassifier(encoder, backbone, classes),
        "random": SequenceClassifier(nn.Linear(12, fresh.d_model), fresh, classes),
    }.items():
        train(model.train(), data, options.records, options.steps)
        scores[start] = test(model.eval(), data)
        print(f"{start} start: macro AUROC {scores[start]:.3f}")
    return scores


if __name__ == "__main__":
    main()
