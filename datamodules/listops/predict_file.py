"""A user's expressions for predict."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.listops.expressions import Expressions, encode, evaluate, join, tokenize
from msssm.errors import InputError, MissingFileError


def read_expressions(file: str | Path | None) -> Expressions:
    """Reads a text file of expressions, one per line, without blank lines; the labels are their values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file is given, a line is no expression, or there is no line.
    """
    if file is None:
        raise InputError("asked to predict, got predict_file=None; name a text file with one expression per line")
    path = Path(file)
    if not path.is_file():
        raise MissingFileError(f"asked to predict the expressions in {path}, got no such file; check predict_file")
    rows: list[npt.NDArray[np.uint8]] = []
    labels: list[int] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if line.strip():
            try:
                tokens = tokenize(line)
                labels.append(evaluate(tokens))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}; correct or remove the line") from error
            rows.append(encode(tokens))
    if not rows:
        raise InputError(f"asked to predict the expressions in {path}, got no line; write one expression per line")
    return join(rows, labels)
