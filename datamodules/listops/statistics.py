"""Statistics of a data set to know before training on it."""

from collections.abc import Mapping

import numpy as np

from datamodules.listops.expressions import Expressions, num_classes, vocab_size


def root_operator_accuracy(train: Expressions, test: Expressions) -> float:
    """Test accuracy of the most frequent training label of each root operator, which ignores all nesting."""
    counts = np.zeros((vocab_size, num_classes), dtype=np.int64)
    np.add.at(counts, (train.tokens[train.offsets[:-1]], train.labels), 1)
    answers = counts.argmax(axis=1)
    return float((answers[test.tokens[test.offsets[:-1]]] == test.labels).mean())


def shared_between_splits(splits: Mapping[str, Expressions]) -> int:
    """Number of distinct expressions that occur in more than one split."""
    keys = [{data.key(i) for i in range(data.samples)} for data in splits.values()]
    return sum(len(each) for each in keys) - len(set().union(*keys))
