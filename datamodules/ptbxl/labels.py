"""Classes of a label set from the SCP-ECG codes of a record, by pure functions.

PTB-XL (Wagner et al. 2020, Scientific Data 7:154) gives each record a dictionary of statement codes with a likelihood;
`scp_statements.csv` lists which of the 71 codes are diagnostic (44, in 23 subclasses and 5 superclasses), form (19) and
rhythm (12) statements. Four codes are both diagnostic and form.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from msssm.errors import InputError

# Each with its number of classes.
LABEL_SETS = {"all": 71, "diagnostic": 44, "subdiagnostic": 23, "superdiagnostic": 5, "form": 19, "rhythm": 12}
_COLUMNS = ("diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass")


def class_names(label_set: str, statements: pd.DataFrame) -> list[str]:
    """Names of a label set's classes, sorted: the columns of `multi_hot`.

    Raises:
        ValueError: the label set is unknown, or the table lacks columns of scp_statements.csv.
    """
    return sorted(set(_class_of(label_set, statements).values()))


def aggregate_labels(
    scp_codes: Mapping[str, float], label_set: str, statements: pd.DataFrame, likelihood: float | None = None
) -> list[str]:
    """Classes of one record, sorted and each once.

    Args:
        scp_codes: code -> likelihood in percent, as in the column `scp_codes` of ptbxl_database.csv.
        label_set: "all", "diagnostic", "subdiagnostic", "superdiagnostic", "form" or "rhythm".
        statements: scp_statements.csv, indexed by code.
        likelihood: smallest likelihood of a diagnostic statement that counts; None counts every listed code, as in the
            published protocol (Strodthoff et al. 2021, IEEE JBHI 25:1519). Other statements have no likelihood, written
            as 0, and always count.

    Raises:
        ValueError: the label set is unknown, `statements` lacks a code, or the table lacks its columns.
    """
    return _aggregate(
        scp_codes, _class_of(label_set, statements), _diagnostic(statements), set(statements.index), likelihood
    )


def multi_hot(
    records: Sequence[Mapping[str, float]], label_set: str, statements: pd.DataFrame, likelihood: float | None = None
) -> npt.NDArray[np.float32]:
    """Labels (records, classes), 1 where a record has the class; arguments and errors as `aggregate_labels`."""
    class_of, diagnostic, known = _class_of(label_set, statements), _diagnostic(statements), set(statements.index)
    column = {name: index for index, name in enumerate(class_names(label_set, statements))}
    labels = np.zeros((len(records), len(column)), dtype=np.float32)
    for row, scp_codes in zip(labels, records, strict=True):
        row[[column[name] for name in _aggregate(scp_codes, class_of, diagnostic, known, likelihood)]] = 1
    return labels


def _aggregate(
    scp_codes: Mapping[str, float],
    class_of: Mapping[str, str],
    diagnostic: set[str],
    known: set[str],
    likelihood: float | None,
) -> list[str]:
    if unknown := sorted(set(scp_codes) - known):
        raise InputError(
            f"got the SCP codes {', '.join(unknown)}, which scp_statements.csv does not have; "
            "take ptbxl_database.csv and scp_statements.csv from the same release"
        )
    return sorted(
        {
            class_of[code]
            for code, value in scp_codes.items()
            if code in class_of and (likelihood is None or code not in diagnostic or value >= likelihood)
        }
    )


def _class_of(label_set: str, statements: pd.DataFrame) -> dict[str, str]:
    """Class of each code that belongs to the label set."""
    if label_set not in LABEL_SETS:
        raise InputError(f"asked for the label set {label_set!r}; choose one of {', '.join(LABEL_SETS)}")
    if missing := [column for column in _COLUMNS if column not in statements.columns]:
        raise InputError(
            f"scp_statements.csv has no column {', '.join(missing)}; take the file that PhysioNet publishes"
        )
    if label_set == "all":
        return {code: code for code in statements.index}
    if label_set in ("subdiagnostic", "superdiagnostic"):
        column = "diagnostic_subclass" if label_set == "subdiagnostic" else "diagnostic_class"
        classes = statements.loc[statements["diagnostic"] == 1, column].dropna()
        return {str(code): str(name) for code, name in classes.items()}
    return {code: code for code in statements.index[statements[label_set] == 1]}


def _diagnostic(statements: pd.DataFrame) -> set[str]:
    return set(statements.index[statements["diagnostic"] == 1])
