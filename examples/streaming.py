"""A classifier that answers sample by sample, in constant memory. About 7 s on one core.

    python examples/streaming.py

It learns to tell whether a noisy signal has had a burst, then watches one signal as it comes in.
"""

import argparse
from functools import partial

import torch
from torch import Tensor, nn

from msssm import Backbone, MultiScaleSSM, SequenceClassifier, StreamingClassifier, param_groups

LENGTH, BURST = 128, 12


def signals(count: int) -> tuple[Tensor, Tensor]:
    """Noise (count, LENGTH, 1), and where a fast wave begins in it; LENGTH where there is none."""
    t = torch.arange(LENGTH)
    start = torch.where(torch.rand(count) < 0.5, torch.randint(10, LENGTH - BURST, (count,)), LENGTH)
    burst = (t >= start[:, None]) & (t < start[:, None] + BURST)
    return (torch.randn(count, LENGTH) + 2 * burst * torch.sin(2 * t)).unsqueeze(-1), start


def main(args: list[str] | None = None) -> float:
    """Trains, streams, and returns the largest difference between the stream and the whole run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(args)
    torch.manual_seed(0)
    backbone = Backbone(partial(MultiScaleSSM, levels=3, state_size=4), d_model=24, n_layers=2)
    model = SequenceClassifier(nn.Linear(1, 24), backbone, num_classes=2)
    optimizer = torch.optim.AdamW(param_groups(model, lr=3e-3, weight_decay=0.01))
    for step in range(options.steps):
        x, start = signals(32)
        loss = nn.functional.cross_entropy(model(x), (start < LENGTH).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.3f}")

    x, start = signals(1)
    while start.item() == LENGTH:
        x, start = signals(1)
    print(f"a burst begins at sample {start.item()}; the probability of one, as the signal comes in:")
    stream = StreamingClassifier(model.eval())
    state = stream.initial_state(batch_size=1)
    for t in range(LENGTH):
        logits, state = stream.step(x[:, t], state)
        if t % 8 == 7:
            print(f"  {t + 1:4d}  {logits.softmax(-1)[0, 1]:.2f}")
    with torch.no_grad():
        return (logits - model(x)).abs().max().item()


if __name__ == "__main__":
    print(f"the stream ends where the whole signal does, within {main():.1e}")
