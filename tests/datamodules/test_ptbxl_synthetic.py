"""Generated ECGs: the physics of the leads, the labels, and the files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from scipy.signal import find_peaks

from datamodules.ptbxl import LABEL_SETS, LEADS, generate, multi_hot, read_database, read_statements, simulate, verify
from tests.support.ptbxl import COUNT, copy_to

LEAD = {name: index for index, name in enumerate(LEADS)}
NORM, LONG_PR, LBBB, RBBB, LVH, IMI, ASMI, ST_DOWN, ST_UP, LOW_T = range(10)


def _record(rhythm: str, finding: int, seed: int, rate: int = 100) -> np.ndarray:
    return simulate(rhythm, finding, np.random.default_rng(seed), rate).astype(np.int64)


def _beats(signal: np.ndarray) -> np.ndarray:
    """Times of the R peaks in lead II, s."""
    lead = signal[:, LEAD["II"]]
    peaks, _ = find_peaks(lead, height=0.5 * lead.max(), distance=20)
    return np.asarray(peaks) / 100


@pytest.mark.parametrize("rhythm", ["SR", "SBRAD", "STACH", "SARRH", "AFIB", "BIGU"])
@pytest.mark.parametrize("finding", range(10))
def test_limb_leads_obey_einthoven_and_goldberger(rhythm: str, finding: int) -> None:
    signal = _record(rhythm, finding, 10 * finding)
    I, II, III, aVR, aVL, aVF = signal[:, :6].T  # noqa: E741
    assert np.array_equal(III, II - I)
    for augmented, twice in ((aVR, -I - II), (aVL, 2 * I - II), (aVF, 2 * II - I)):
        assert np.abs(2 * augmented - twice).max() <= 1  # half a unit of rounding
    assert 200 < np.abs(signal).max() < 10_000  # microvolts


@pytest.mark.parametrize(("rhythm", "low", "high"), [("SR", 57, 100), ("SBRAD", 36, 52), ("STACH", 105, 145)])
def test_rhythms_have_their_rate(rhythm: str, low: float, high: float) -> None:
    for seed in range(10):
        rate = 60 / np.diff(_beats(_record(rhythm, NORM, seed))).mean()
        assert low < rate < high


def test_fibrillation_is_irregular_and_sinus_rhythm_is_not() -> None:
    def spread(rhythm: str, seed: int) -> float:
        intervals = np.diff(_beats(_record(rhythm, NORM, seed)))
        return float(intervals.std() / intervals.mean())

    assert max(spread("SR", seed) for seed in range(10)) < 0.05
    assert min(spread("AFIB", seed) for seed in range(10)) > 0.08


def _average_beat(finding: int, seed: int) -> np.ndarray:
    """(300, 12) mean beat of a sinus rhythm at 500 Hz from 0.2 s before R on, baseline at zero, mV."""
    signal = _record("SR", finding, seed, 500) / 1000
    lead = np.abs(signal[:, LEAD["V1"] :]).sum(axis=1)
    peaks, _ = find_peaks(lead, height=0.6 * lead.max(), distance=200)
    beats = [signal[peak - 100 : peak + 200] for peak in peaks if 100 <= peak < len(signal) - 200]
    beat = np.mean(beats, axis=0)
    return np.asarray(beat - np.median(beat, axis=0))


def _qrs_width(finding: int, seed: int) -> float:
    steepness = np.abs(np.diff(_average_beat(finding, seed)[50:200], axis=0)).sum(axis=1)
    return float((steepness > 0.15 * steepness.max()).sum() * 0.002)


def test_findings_show_in_the_signal() -> None:
    seeds = range(5)
    normal = [_average_beat(NORM, seed) for seed in seeds]
    assert all(_qrs_width(LBBB, s) > 1.25 * _qrs_width(NORM, s) for s in seeds)
    assert all(_qrs_width(RBBB, s) > 1.25 * _qrs_width(NORM, s) for s in seeds)
    for seed in seeds:
        height = np.ptp(_average_beat(LVH, seed), axis=0) / np.ptp(normal[seed], axis=0)
        assert height[LEAD["V5"]] > 1.8
        st = slice(135, 160)  # 70 to 120 ms behind R
        up, down, flat = (_average_beat(f, seed)[st, LEAD["V5"]].mean() for f in (ST_UP, ST_DOWN, NORM))
        assert up > flat + 0.05
        assert down < flat - 0.05
        t_wave = slice(200, 260)
        assert _average_beat(ST_DOWN, seed)[t_wave, LEAD["V5"]].min() < -0.1
        low, high = (np.abs(_average_beat(f, seed)[t_wave, LEAD["V5"]]).max() for f in (LOW_T, NORM))
        assert low < 0.5 * high


def test_the_files_are_those_of_ptbxl(tmp_path: Path) -> None:
    folder = copy_to(tmp_path)
    header = wfdb.rdheader(str(folder / "records100" / "00000" / "00001_lr"))
    assert (header.fs, header.sig_len, header.sig_name) == (100, 1000, list(LEADS))
    assert set(header.fmt) == {"16"}
    assert set(header.adc_gain) == {1000.0}
    table = pd.read_csv(folder / "ptbxl_database.csv", index_col="ecg_id")
    assert len(table.columns) == 27
    assert table.loc[1, "filename_hr"] == "records500/00000/00001_hr"
    assert json.loads((folder / "SYNTHETIC").read_text())["seed"] == 3
    assert verify(folder) == []


def test_every_fold_has_both_outcomes_of_several_classes_of_every_set(tmp_path: Path) -> None:
    folder = copy_to(tmp_path)
    table, statements = read_database(folder), read_statements(folder)
    for label_set, least in zip(LABEL_SETS, (25, 10, 10, 5, 11, 6), strict=True):
        labels = multi_hot(table["scp_codes"].tolist(), label_set, statements)
        shares = np.stack([labels[table["strat_fold"] == fold].mean(axis=0) for fold in range(1, 11)])
        assert ((shares > 0) & (shares < 1)).all(axis=0).sum() == least


def test_a_patient_is_in_one_fold(tmp_path: Path) -> None:
    table = read_database(copy_to(tmp_path))
    assert (table.groupby("patient_id")["strat_fold"].nunique() == 1).all()
    records = table["patient_id"].value_counts()
    assert (records == 2).sum() == COUNT // 4
    twice = table["patient_id"].map(records) == 2
    assert set(table.loc[twice, "strat_fold"]) == set(range(1, 11)), "an interval over patients has something to do"
    assert records.sum() == COUNT


@pytest.mark.slow
def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    again = generate(tmp_path / "again", COUNT, seed=3)
    first = (copy_to(tmp_path) / "SHA256SUMS.txt").read_text()
    assert (again / "SHA256SUMS.txt").read_text() == first
    other = simulate("SR", NORM, np.random.default_rng([4, 1]))
    assert not np.array_equal(other, simulate("SR", NORM, np.random.default_rng([3, 1])))


def test_both_sampling_rates_show_the_same_heart() -> None:
    low, high = _record("AFIB", LBBB, 5), _record("AFIB", LBBB, 5, 500)[::5]
    assert np.abs(low - high).max() < 0.012 * 1000 * 2 * 6  # the noise of both, of its own at each rate


def test_bad_requests_and_a_data_set_that_is_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"asked for 20 records .* take at least 200"):
        generate(tmp_path, 20)
    with pytest.raises(ValueError, match=r"at \(250,\) Hz; .* at 100 or 500 Hz"):
        generate(tmp_path, 200, sampling_rates=(250,))
    copy_to(tmp_path)
    with pytest.raises(ValueError, match="holds a data set already"):
        generate(tmp_path, 200)
