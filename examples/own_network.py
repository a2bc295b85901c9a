"""The layer in a network of one's own: does a text hold the word "scale"? About 7 s on one core.

    python examples/own_network.py

Characters go through an embedding, two layers with residuals, and a head on the last position, which has seen them all.
"""

import argparse
import random
import string

import torch
from torch import Tensor, nn

from msssm import MultiScaleSSM, param_groups

WORD, LETTERS = "scale", string.ascii_lowercase


class Spotter(nn.Module):
    """Texts (B, L) of letters' numbers -> logits (B,) of their holding the word."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), width)
        self.layers = nn.ModuleList(MultiScaleSSM(width, levels=3, state_size=4) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.head = nn.Linear(width, 1)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + nn.functional.gelu(layer(norm(x)))
        return self.head(x[:, -1]).squeeze(-1)


def texts(count: int, length: int) -> tuple[Tensor, Tensor]:
    """Random letters; half of the texts have the word somewhere."""
    rows, labels = [], torch.arange(count) % 2
    for label in labels.tolist():
        row = random.choices(LETTERS, k=length)
        if label:
            start = random.randrange(length - len(WORD) + 1)
            row[start : start + len(WORD)] = WORD
        rows.append([LETTERS.index(letter) for letter in row])
    return torch.tensor(rows), labels.float()


def main(args: list[str] | None = None) -> float:
    """Trains, and returns the accuracy on new texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args(args)
    torch.manual_seed(0), random.seed(0)
    model = Spotter()
    optimizer = torch.optim.AdamW(param_groups(model, lr=2e-3, weight_decay=0.01))
    for step in range(options.steps):
        x, y = texts(64, 32)
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss:.3f}")
    x, y = texts(1000, 32)
    with torch.no_grad():
        accuracy = ((model(x) > 0) == y.bool()).float().mean().item()
    print(f"accuracy on 1,000 new texts: {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    main()
