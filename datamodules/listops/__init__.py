"""ListOps: expressions, their generator, and the data module."""

from datamodules.listops.datamodule import ListOpsDataModule
from datamodules.listops.expressions import (
    PAD,
    VOCABULARY,
    Expressions,
    decode,
    encode,
    evaluate,
    length,
    num_classes,
    tokenize,
    vocab_size,
)
from datamodules.listops.generator import generate, generate_arrays

__all__ = [
    "PAD",
    "VOCABULARY",
    "Expressions",
    "ListOpsDataModule",
    "decode",
    "encode",
    "evaluate",
    "generate",
    "generate_arrays",
    "length",
    "num_classes",
    "tokenize",
    "vocab_size",
]
