"""Generated 12-lead ECGs in PTB-XL's exact on-disk format, with labels that follow from how each record was made.

The heart is a dipole whose three components are sums of Gaussians around each beat (McSharry et al. 2003, IEEE TBME
50:289; Sameni et al. 2007 for the dipole), seen by the leads through Dower's matrix (Dower et al. 1980). Limb leads
therefore obey Einthoven and Goldberger: III = II - I, aVR = -(I + II)/2, aVL = I - II/2, aVF = II - I/2.
neurokit2's `ecg_simulate(method="multileads")` was measured for this and not taken: 0.47 s per record, and its limb
leads break III = II - I by more than 1 mV.

Every record combines one rhythm with one finding, in equal shares within each fold:

    SR 60-95 beats/min, SBRAD 38-50, STACH 110-140; SARRH breathing rhythm; AFIB irregular, no P, fibrillatory waves;
    BIGU every second beat a PVC
    NORM; 1AVB/LPR long PR; CLBBB, CRBBB wide QRS; LVH/HVOLT high QRS; IMI/QWAVE and ASMI/QWAVE lost R;
    ISC_/STD_/INVT ST depression and inverted T; NST_/STE_ ST elevation; NDT/LOWT low T

A patient is in one fold, and every third has two records.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import wfdb
from tqdm.auto import tqdm

from datamodules.ptbxl import files
from datamodules.ptbxl.leads import LEADS
from datamodules.ptbxl.record import SECONDS, UNITS_PER_MILLIVOLT
from datamodules.ptbxl.statements import scp_statements
from msssm.errors import InputError

GENERATOR_VERSION = 2  # raise it when the data of a seed changes
MIN_RECORDS = 200  # enough for every rhythm and every finding in every fold

Floats = npt.NDArray[np.float64]
Wave = tuple[float, float, tuple[float, float, float]]  # centre and width (s), amplitude (mV) to the left, down, back

# Dower's matrix: from the dipole to I, II, V1..V6.
_DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
_P: list[Wave] = [(-0.16, 0.022, (0.08, 0.11, -0.02))]
_QRS: list[Wave] = [
    (-0.026, 0.009, (-0.10, -0.06, -0.20)),
    (0.0, 0.011, (0.95, 0.75, 0.15)),
    (0.024, 0.011, (0.05, -0.15, 0.55)),
]
_T: list[Wave] = [(0.27, 0.045, (0.25, 0.20, -0.16))]
_LBBB: list[Wave] = [(0.01, 0.026, (0.75, 0.25, 0.75)), (0.065, 0.022, (0.80, 0.25, 0.55))]
_RBBB: list[Wave] = [*_QRS, (0.072, 0.02, (-0.55, 0.02, -0.60))]
_PVC: list[Wave] = [(0.02, 0.04, (-0.9, 1.1, 0.7)), (0.30, 0.06, (0.45, -0.5, -0.35))]


@dataclass(frozen=True)
class _Finding:
    """Difference of a heart from a healthy one, and its SCP codes."""

    codes: dict[str, float]
    qrs: list[Wave] = field(default_factory=lambda: _QRS)
    pr: float = 0.0  # s added to the PR interval
    qrs_gain: float = 1.0
    t_gain: float = 1.0
    st: tuple[float, float, float] = (0.0, 0.0, 0.0)  # mV


_FINDINGS = (
    _Finding({"NORM": 100.0}),
    _Finding({"1AVB": 100.0, "LPR": 0.0}, pr=0.12),
    _Finding({"CLBBB": 100.0, "ABQRS": 0.0}, qrs=_LBBB, t_gain=-0.8),
    _Finding({"CRBBB": 100.0, "ABQRS": 0.0}, qrs=_RBBB),
    _Finding({"LVH": 100.0, "HVOLT": 0.0}, qrs_gain=2.2, t_gain=0.7),
    _Finding({"IMI": 100.0, "QWAVE": 0.0}, qrs=[(-0.022, 0.014, (0.15, -0.75, -0.1)), *_QRS[1:]]),
    _Finding({"ASMI": 80.0, "QWAVE": 0.0}, qrs=[(-0.022, 0.014, (-0.1, 0.0, 0.7)), *_QRS[1:]], st=(0.03, 0.0, -0.08)),
    _Finding({"ISC_": 80.0, "STD_": 0.0, "INVT": 0.0}, t_gain=-0.8, st=(-0.16, -0.12, 0.10)),
    _Finding({"NST_": 50.0, "STE_": 0.0}, st=(0.14, 0.12, -0.16)),
    _Finding({"NDT": 50.0, "LOWT": 0.0}, t_gain=0.1),
)
_RHYTHMS = ("SR", "SBRAD", "STACH", "SARRH", "AFIB", "BIGU")
_RATES = {"SBRAD": (38, 50), "STACH": (110, 140), "AFIB": (65, 120)}


def simulate(rhythm: str, finding: int, rng: np.random.Generator, sampling_rate: int = 100) -> npt.NDArray[np.int16]:
    """Simulates one record, (10 * sampling_rate, 12) int16 in microvolts, leads as `LEADS`.

    Args:
        rhythm: one of SR, SBRAD, STACH, SARRH, AFIB, BIGU.
        finding: 0..9, in the order of the module's list.
        rng: of all random choices; at another sampling rate, an equal generator gives the same heart.
        sampling_rate: in Hz.
    """
    what = _FINDINGS[finding]
    beats, is_pvc = _beats(rhythm, rng)
    time = np.arange(SECONDS * sampling_rate) / sampling_rate
    axis = 1 + 0.12 * rng.standard_normal(3)
    size = rng.uniform(0.85, 1.2)
    dipole = np.zeros((len(time), 3))
    for index, beat in enumerate(beats):
        if is_pvc[index]:
            dipole += _waves(time - beat, _PVC)
            continue
        interval = beats[index + 1] - beat if index + 1 < len(beats) else 0.8
        stretch = np.sqrt(min(max(interval, 0.4), 1.2))  # Bazett: repolarisation follows the root of the RR interval
        if rhythm != "AFIB":
            dipole += _waves(time - beat + what.pr, _P)
        dipole += what.qrs_gain * _waves(time - beat, what.qrs)
        dipole += what.t_gain * _waves((time - beat) / stretch, _T)
        dipole += _plateau(time - beat, 0.05, 0.27 * stretch)[:, None] * np.array(what.st)
    if rhythm == "AFIB":
        phase = 2 * np.pi * (rng.uniform(5, 8) * time + rng.uniform())
        dipole += 0.05 * np.sin(phase + 0.8 * np.sin(2 * np.pi * 0.7 * time))[:, None] * np.array([0.4, 0.6, -1.0])
    independent = (dipole * axis * size) @ _DOWER.T + _disturbance(len(_DOWER), rng, time)
    I, II, *chest = np.rint(UNITS_PER_MILLIVOLT * independent.T)  # noqa: E741
    limb = (I, II, II - I, -np.rint((I + II) / 2), np.rint(I - II / 2), np.rint(II - I / 2))
    return np.clip(np.stack([*limb, *chest], axis=1), -32767, 32767).astype(np.int16)


def _beats(rhythm: str, rng: np.random.Generator) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Draws the times of the beats, from before the record until after it, and which are PVCs."""
    mean = 60 / rng.uniform(*_RATES.get(rhythm, (60, 95)))
    count = 4 + int(1.6 * SECONDS / mean)
    intervals = mean * (1 + 0.02 * rng.standard_normal(count))
    is_pvc = np.zeros(count, dtype=np.bool_)
    if rhythm == "SARRH":
        intervals *= 1 + 0.22 * np.sin(2 * np.pi * (np.arange(count) * mean * rng.uniform(0.18, 0.25) + rng.uniform()))
    elif rhythm == "AFIB":
        intervals = mean * np.clip(1 + 0.24 * rng.standard_normal(count), 0.5, 1.8)
    elif rhythm == "BIGU":
        is_pvc[1::2] = True
        intervals[0::2] *= 0.62  # early
        intervals[1::2] *= 1.38  # and the pause after it
    return -mean * rng.uniform(1, 2) + np.cumsum(intervals) - intervals[0], is_pvc


def _waves(time: Floats, waves: list[Wave]) -> Floats:
    total = np.zeros((len(time), 3))
    for centre, width, amplitude in waves:
        total += np.exp(-0.5 * ((time - centre) / width) ** 2)[:, None] * np.array(amplitude)
    return total


def _plateau(time: Floats, start: float, end: float) -> Floats:
    return 0.25 * (1 + np.tanh((time - start) / 0.015)) * (1 + np.tanh((end - time) / 0.03))


def _disturbance(leads: int, rng: np.random.Generator, time: Floats) -> Floats:
    """Baseline wander and muscle noise (mV)."""
    wander = [
        rng.uniform(0, 0.06) * np.sin(2 * np.pi * (rng.uniform(0.1, 0.4) * time + rng.uniform())) for _ in range(leads)
    ]
    return np.stack(wander, axis=1) + 0.012 * rng.standard_normal((len(time), leads))


def generate(
    root: Path, count: int = 400, *, seed: int = 0, sampling_rates: tuple[int, ...] = (100,), progress: bool = False
) -> Path:
    """Writes `count` records, their tables, SHA256SUMS.txt and the marker SYNTHETIC into `<root>/ptbxl`.

    Args:
        root: as the data module's; the data set must not exist yet.
        count: records, at least 200.
        seed: the same seed gives the same files.
        sampling_rates: 100, 500 or both; ptbxl_database.csv names the files of both.
        progress: show a bar.

    Raises:
        ValueError: there are too few records, the sampling rate is another, the seed is negative, or `<root>/ptbxl`
            contains a data set.
    """
    if seed < 0:
        raise InputError(f"asked for synthetic records of seed {seed}; give at least 0")
    if count < MIN_RECORDS or not set(sampling_rates) <= set(files.FILENAME) or not sampling_rates:
        raise InputError(
            f"asked for {count} records at {sampling_rates} Hz; take at least {MIN_RECORDS}, so that every fold has "
            "every class, at 100 or 500 Hz"
        )
    folder = Path(root) / "ptbxl"
    if (folder / files.DATABASE).exists():
        raise InputError(f"{folder} holds a data set already; choose another root, or delete it")
    unfinished = Path(root) / ".ptbxl.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    table, plan = _plan(count, np.random.default_rng([seed, 0]))
    for ecg_id in tqdm(table.index, desc="generating ECGs", unit="record", disable=not progress):
        rhythm, finding = plan[ecg_id]
        for rate in sampling_rates:
            path = unfinished / table.loc[ecg_id, files.FILENAME[rate]]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, simulate(rhythm, finding, np.random.default_rng([seed, ecg_id]), rate), rate)
    table.to_csv(unfinished / files.DATABASE)
    scp_statements().to_csv(unfinished / files.STATEMENTS)
    about = {"generator": GENERATOR_VERSION, "seed": seed, "records": count, "sampling_rates": sampling_rates}
    (unfinished / files.SYNTHETIC).write_text(json.dumps(about) + "\n")
    _write_digests(unfinished)
    if folder.is_dir():
        for path in unfinished.iterdir():
            os.rename(path, folder / path.name)
        unfinished.rmdir()
    else:
        os.rename(unfinished, folder)
    return folder


def _plan(count: int, rng: np.random.Generator) -> tuple[pd.DataFrame, dict[int, tuple[str, int]]]:
    """Draws ptbxl_database.csv, and rhythm and finding of each record."""
    patients: list[int] = []
    while len(patients) < count:
        patient = patients[-1] + 1 if patients else 1
        patients += [patient] * min(2 if patient % 3 == 0 else 1, count - len(patients))
    patient_id = np.array(patients)
    fold = 1 + patient_id % 10
    rhythms, findings = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    for number in range(1, 11):
        rows = np.flatnonzero(fold == number)
        rhythms[rows] = rng.permutation(np.arange(len(rows)) % len(_RHYTHMS))
        findings[rows] = rng.permutation(np.arange(len(rows)) % len(_FINDINGS))
    plan = {row + 1: (_RHYTHMS[rhythms[row]], int(findings[row])) for row in range(count)}
    records = []
    for ecg_id, (rhythm, finding) in plan.items():
        codes = {**_FINDINGS[finding].codes, rhythm: 0.0, **({"PVC": 0.0} if rhythm == "BIGU" else {})}
        place = f"{ecg_id // 1000 * 1000:05d}/{ecg_id:05d}"
        records.append(_row(patients[ecg_id - 1], codes, int(fold[ecg_id - 1]), place, rng))
    return pd.DataFrame(records, index=pd.Index(plan, name="ecg_id")), plan


def _row(patient: int, codes: dict[str, float], fold: int, place: str, rng: np.random.Generator) -> dict[str, Any]:
    """One row with all columns of ptbxl_database.csv; those without meaning for a generated record are empty."""
    return {
        "patient_id": float(patient),
        "age": float(rng.integers(20, 90)),
        "sex": int(rng.integers(2)),
        "height": None,
        "weight": None,
        "nurse": None,
        "site": None,
        "device": "synthetic",
        "recording_date": "2000-01-01 00:00:00",
        "report": "synthetic",
        "scp_codes": str(codes),
        "heart_axis": None,
        "infarction_stadium1": None,
        "infarction_stadium2": None,
        "validated_by": None,
        "second_opinion": False,
        "initial_autogenerated_report": False,
        "validated_by_human": False,
        "baseline_drift": None,
        "static_noise": None,
        "burst_noise": None,
        "electrodes_problems": None,
        "extra_beats": None,
        "pacemaker": None,
        "strat_fold": fold,
        "filename_lr": f"records100/{place}_lr",
        "filename_hr": f"records500/{place}_hr",
    }


def write_record(path: Path, signal: npt.NDArray[np.int16], sampling_rate: int) -> None:
    """Writes a record (L, 12) in microvolts as `<path>.hea` and `.dat`."""
    leads = len(LEADS)
    wfdb.wrsamp(
        path.name,
        fs=sampling_rate,
        units=["mV"] * leads,
        sig_name=list(LEADS),
        d_signal=signal.astype(np.int64),
        fmt=["16"] * leads,
        adc_gain=[float(UNITS_PER_MILLIVOLT)] * leads,
        baseline=[0] * leads,
        write_dir=str(path.parent),
    )


def _write_digests(folder: Path) -> None:
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            lines.append(f"{file_digest(file, 'sha256').hexdigest()} {path.relative_to(folder)}\n")
    (folder / files.DIGESTS).write_text("".join(lines))
