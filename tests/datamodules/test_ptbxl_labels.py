"""From SCP codes to the six label sets."""

import numpy as np
import pytest

from datamodules.ptbxl import LABEL_SETS, aggregate_labels, class_names, multi_hot
from datamodules.ptbxl.statements import scp_statements

STATEMENTS = scp_statements()
CODES = {"NDT": 50.0, "IMI": 15.0, "ILMI": 100.0, "PVC": 0.0, "AFIB": 0.0}


@pytest.mark.parametrize(("label_set", "count"), list(zip(LABEL_SETS, (71, 44, 23, 5, 19, 12), strict=True)))
def test_label_sets_have_their_published_sizes_in_sorted_order(label_set: str, count: int) -> None:
    names = class_names(label_set, STATEMENTS)
    assert len(names) == len(set(names)) == count
    assert names == sorted(names)
    shuffled = STATEMENTS.sample(frac=1, random_state=0)
    assert class_names(label_set, shuffled) == names


def test_superclasses_hold_their_published_numbers_of_codes() -> None:
    sizes = STATEMENTS["diagnostic_class"].value_counts().to_dict()
    assert sizes == {"STTC": 13, "MI": 14, "CD": 11, "HYP": 5, "NORM": 1}


@pytest.mark.parametrize(
    ("label_set", "classes"),
    [
        ("all", ["AFIB", "ILMI", "IMI", "NDT", "PVC"]),
        ("diagnostic", ["ILMI", "IMI", "NDT"]),
        ("subdiagnostic", ["IMI", "STTC"]),
        ("superdiagnostic", ["MI", "STTC"]),
        ("form", ["NDT", "PVC"]),
        ("rhythm", ["AFIB"]),
    ],
)
def test_codes_give_the_classes_of_each_set(label_set: str, classes: list[str]) -> None:
    assert aggregate_labels(CODES, label_set, STATEMENTS) == classes
    (row,) = multi_hot([CODES], label_set, STATEMENTS)
    assert [name for name, value in zip(class_names(label_set, STATEMENTS), row, strict=True) if value] == classes


def test_a_code_counts_whatever_its_likelihood_unless_a_threshold_is_asked_for() -> None:
    assert aggregate_labels({"NORM": 0.0}, "superdiagnostic", STATEMENTS) == ["NORM"]
    assert aggregate_labels(CODES, "diagnostic", STATEMENTS, likelihood=50) == ["ILMI", "NDT"]
    assert aggregate_labels(CODES, "diagnostic", STATEMENTS, likelihood=50.1) == ["ILMI"]
    assert aggregate_labels(CODES, "rhythm", STATEMENTS, likelihood=100) == ["AFIB"]
    assert aggregate_labels(CODES, "all", STATEMENTS, likelihood=100) == ["AFIB", "ILMI", "PVC"]


def test_a_record_without_a_class_of_the_set_has_none() -> None:
    assert aggregate_labels({"AFIB": 0.0}, "diagnostic", STATEMENTS) == []
    assert aggregate_labels({}, "all", STATEMENTS) == []
    assert np.array_equal(multi_hot([{"AFIB": 0.0}], "form", STATEMENTS), np.zeros((1, 19), np.float32))


def test_unknown_codes_and_sets_are_named() -> None:
    with pytest.raises(ValueError, match=r"got the SCP codes XYZ, which scp_statements.csv does not have"):
        aggregate_labels({"NORM": 100.0, "XYZ": 0.0}, "rhythm", STATEMENTS)
    with pytest.raises(ValueError, match=r"asked for the label set 'sub'; choose one of all, diagnostic"):
        class_names("sub", STATEMENTS)
    with pytest.raises(ValueError, match=r"has no column rhythm, diagnostic_class"):
        class_names("all", STATEMENTS.drop(columns=["rhythm", "diagnostic_class"]))
