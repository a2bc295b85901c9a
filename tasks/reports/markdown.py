"""Tables in Markdown that also read well in a terminal."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Formats rows, the first of which is the header, as lines.

    Args:
        rows: of equally many cells.
        left: number of columns that are aligned to the left; the others are numbers, to the right.
    """
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    padded = [
        [cell.ljust(width) if place < left else cell.rjust(width) for place, (cell, width) in enumerate(cells)]
        for cells in (zip(row, widths, strict=True) for row in [rows[0], rule, *rows[1:]])
    ]
    return [f"| {' | '.join(row)} |" for row in padded]
