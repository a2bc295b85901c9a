"""Tables and arrays of samples as devices and programs write them: the same signal, or what was seen and what helps."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from datamodules.ptbxl import LEADS, Recording, read_recording, simulate
from datamodules.ptbxl.leads import read_name
from tests.support.tolerances import FLOAT64, METRIC

MILLIVOLTS = simulate("SR", 0, np.random.default_rng(0)) / 1000
FRAME = pd.DataFrame(MILLIVOLTS, columns=list(LEADS))
SECONDS = np.arange(1000) / 100
RATE: dict[str, Any] = {"given_rate": 100.0}
NAMED: dict[str, Any] = {"given_rate": 100.0, "given_leads": LEADS}


def read(folder: Path, content: str | bytes, name: str = "a.csv", **options: Any) -> Recording:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_recording(folder / name, 100, **options)


def text(frame: pd.DataFrame = FRAME, **options: Any) -> str:
    return frame.to_csv(**({"index": False} | options))


def first(name: str, values: Any) -> str:
    """The table with one more column before the leads."""
    frame = FRAME.copy()
    frame.insert(0, name, values)
    return text(frame)


def named(form: Callable[[str], str], scale: float = 1.0) -> str:
    return text((scale * FRAME).set_axis([form(lead) for lead in LEADS], axis=1))


def written(form: Callable[[float], str], unit: str = "mV") -> str:
    rows = [[form(value) for value in row] for row in MILLIVOLTS]
    return "\n".join(";".join(row) for row in [[f"{lead} ({unit})" for lead in LEADS], *rows])


def european(value: float) -> str:
    return f"{value:,.1f}".translate(str.maketrans(",.", ".,"))


MOMENTS = pd.date_range("2024-01-31", periods=1000, freq="10ms")
CLOCK = [f"'0:{seconds:06.3f}'" for seconds in SECONDS]
DIALECTS: dict[str, tuple[str | bytes, dict[str, Any]]] = {
    **{f"separator {sep!r}": (text(sep=sep), RATE) for sep in ",;\t| "},
    **{f"decimal comma, separator {sep!r}": (text(sep=sep, decimal=","), RATE) for sep in ";\t| "},
    "quoted decimal commas": (text(decimal=",", quoting=1), RATE),
    "thousands": (written(lambda value: f"{value * 1e6:,.1f}", "nV"), RATE),
    "thousands as in Europe": (written(lambda value: european(value * 1e6), "nV"), RATE),
    "BOM": (text().encode("utf-8-sig"), RATE),
    "UTF-16": (text().encode("utf-16"), RATE),
    "UTF-16 LE without BOM": (text().encode("utf-16-le"), RATE),
    "UTF-16 BE without BOM": (text().encode("utf-16-be"), RATE),
    "Latin-1 micro sign": (named("{} (µV)".format, 1000).encode("latin-1"), RATE),
    "UTF-8 micro sign": (named("{} [µV]".format, 1000), RATE),
    "volts": (named("{} [V]".format, 1e-3), RATE),
    "a row of units": (",".join(LEADS) + "\n" + ",".join(["uV"] * 12) + "\n" + text(1000 * FRAME, header=False), RATE),
    "a row of units in brackets": (
        ",".join(LEADS) + "\n" + ",".join(["(uV)"] * 12) + "\n" + text(1000 * FRAME, header=False), RATE),
    "Lead I": (named("Lead {}".format), RATE),
    "ECG_I": (named("ECG_{}".format), RATE),
    "I (mV)": (named("{} (mV)".format), RATE),
    "I_mV": (named("{}_mV".format), RATE),
    "lower case": (named(str.lower), RATE),
    "quoted": (text(quoting=2), RATE),
    "CRLF, separators at the end, empty lines": (text(sep=";").replace("\n", ";\r\n") + "\r\n;;;;;\r\n\r\n", RATE),
    "comments": ("# fs = 100 Hz\n% of nobody\n" + text(), {}),
    "kHz": ("# sampling rate: 0.1 kHz\n" + text(), {}),
    "lines before the header": ("Patient;Nobody\nSampling frequency (Hz);100\n\n" + text(sep=";"), {}),
    "no header": (text(header=False), NAMED),
    "unknown names": (named("channel {} of it".format), NAMED),
    "column numbers as header": (text(pd.DataFrame(MILLIVOLTS), index=True), NAMED),
    "an unnamed index": (text(index=True), RATE),
    "sample numbers": (first("sample", range(1000)), RATE),
    "R's write.table": ("\n".join([" ".join(LEADS), *(f"{i} {' '.join(map(str, row))}" for i, row in
                        enumerate(MILLIVOLTS, start=1))]), RATE),
    "a lead per row": (text(FRAME.T, header=False, index=True), RATE),
    "a lead per row, with a header": (text(FRAME.T, index=True), RATE),
    "a lead per row, no names": (text(FRAME.T, header=False), NAMED),
    "no header, time first": (text(pd.DataFrame(np.c_[SECONDS, MILLIVOLTS]), header=False), {"given_leads": LEADS}),
    "seconds": (first("time", SECONDS), {}),
    "milliseconds": (first("t (ms)", 1000 * SECONDS), {}),
    "milliseconds by their step": (first("Time", 1000 * SECONDS), {}),
    "microseconds": (first("time_us", 1e6 * SECONDS), {}),
    "nanoseconds since 1970": (first("ts", (1.7e18 + 1e9 * SECONDS).astype(np.int64)), {}),
    "ISO": (first("date", MOMENTS.strftime("%Y-%m-%dT%H:%M:%S.%f")), {}),
    "times under the name of an index": (first("Unnamed: 0", SECONDS), {}),
    "a column of marks, a lead at the end": (text(FRAME.assign(mark="N")[["mark", *LEADS]]), RATE),
    "a column of marks at the end": (text(FRAME.assign(mark="N")), RATE),
    "day first": (first("x", MOMENTS.strftime("%d/%m/%Y %H:%M:%S.%f")), {}),
    "PhysioNet": (",".join(["'Elapsed time'", *(f"'{lead.lower()}'" for lead in LEADS)]) + "\n'hh:mm:ss.mmm'"
                  + ",'mV'" * 12 + "\n" + text(FRAME.set_axis(pd.Index(CLOCK)), header=False, index=True), {}),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_is_the_same_signal(tmp_path: Path, dialect: str) -> None:
    content, options = DIALECTS[dialect]
    recording = read(tmp_path, content, **options)
    assert recording.original_rate == 100
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=METRIC)


def test_leads_that_begin_late_and_one_that_never_does_keep_their_rows(tmp_path: Path) -> None:
    frame = FRAME.copy()
    frame.loc[:4, ["V4", "V5"]] = np.nan
    frame["V6"] = np.nan
    recording = read(tmp_path, text(frame), fill_missing="zero", **RATE)
    assert recording.signal.shape == (1000, 12)
    assert recording.missing.sum(0).tolist() == [0] * 9 + [5, 5, 1000]


def test_one_lead_of_a_watch(tmp_path: Path) -> None:
    samples = "\n".join(f"{1000 * value:.0f}," for value in MILLIVOLTS[:, 0])
    head = 'Name,Nobody\nVersion,1.2\nSample Rate,"100 hertz"\n\nLead,Lead I\nUnit,µV\n\n'
    recording = read(tmp_path, head + samples, fill_missing="zero")
    np.testing.assert_allclose(recording.signal[:, 0], MILLIVOLTS[:, 0], rtol=0, atol=METRIC)
    assert recording.missing[:, 1:].all()


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.csv.gz", "A.TXT.GZ"])
def test_other_endings_are_read(tmp_path: Path, name: str) -> None:
    content = text(sep="\t").encode()
    recording = read(tmp_path, gzip.compress(content) if name.lower().endswith("gz") else content, name, **RATE)
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)
    assert recording.name.lower() == "a"


def test_a_lead_turned_over_and_one_with_other_electrodes_are_read_and_said(tmp_path: Path) -> None:
    frame = FRAME.assign(AVR=-FRAME["AVR"]).rename(columns={"AVR": "-aVR", "II": "MLII"}).assign(resp=1.0)
    recording = read(tmp_path, text(frame), **RATE)
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)
    assert recording.notes == ["MLII taken as II", "-aVR turned over to AVR", "not used: resp"]


@pytest.mark.parametrize(
    ("name", "lead", "unit"),
    [
        ("Lead aVR [uV]", "AVR", "uV"), ("MDC_ECG_LEAD_V3", "V3", None), ("DII", "II", None), ("ECG II", "II", None),
        ("\u2161", "II", None), ("V 1", "V1", None), ("'V5'", "V5", None), ("ch_aVF/mV", "AVF", "mV"),
        ("Lead 4", None, None), ("V", None, None), ("V7", None, None), ("resp", None, None), ("I_filtered", None, None),
        ("I (kV)", "I", "kV"), ("I [10 uV]", "I", "10 uV"), ("V1 (uV/bit)", "V1", "uV/bit"), ("V1 (left)", "V1", None),
    ],
)  # fmt: skip
def test_names_of_leads(name: str, lead: str | None, unit: str | None) -> None:
    assert read_name(name)[:2] == (lead, unit)


BROKEN = text().split("\n")
GAP = np.where(np.arange(1000) < 500, SECONDS, SECONDS + 3)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (text(header=False), RATE, r"does not name its leads in 12 columns; give them .*--leads"),
        (named("ch{}x".format), RATE, r"no lead among the names of its 12 columns \('chIx'.*expected I, II.*--leads"),
        (text(), {"given_rate": 100.0, "given_leads": LEADS[::-1]}, "--leads has V6 for I; leave the option out"),
        (text(decimal=",", sep=",").replace('"', ""), RATE, "names 12 columns .* has 24 in its rows.*decimal commas"),
        (written(lambda _: "1,234"), RATE, "such as 1,234, which can be one or a thousand"),
        (named("{} (counts)".format), RATE, "has I in counts, expected mV, uV or V"),
        (named("{} (kV)".format), RATE, "has I in kV, expected mV, uV or V"),
        ("\n".join([*BROKEN[:500], "oops," + BROKEN[500], *BROKEN[501:]]), RATE, "its line 501 has 13 columns"),
        ("\n".join([*BROKEN[:500], BROKEN[500] + "oops", *BROKEN[501:]]), RATE, "its line 501 holds '.*oops'"),
        (text()[:-20], RATE, r"its line 1001 has \d+ columns, the others 12"),
        (b"PK\x03\x04" + bytes(50), RATE, "an archive or a workbook; export it as .csv"),
        ("", RATE, "is empty"),
        (gzip.compress(text().encode())[:-9], RATE, "is not a whole gzip file"),
        (first("time", SECONDS), {"given_rate": 257.0}, "at 100 Hz by its column of times in s, and --sampling_rate"),
        ("# fs: 100\n" + text(), {"given_rate": 257.0}, "at 100 Hz by its line '# fs: 100', and --sampling_rate"),
        (first("time", GAP), {}, r"has unequal times: its column 'time' .* by 3\.01 after sample 500"),
        (first("time (s)", 1e-5 * SECONDS), {}, r"got 1e\+07 from its column 'time \(s\)'"),
        (first("n", range(1000)), {}, "needs a sampling rate in Hz, got None; give it: --sampling_rate"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_answered(tmp_path: Path, content: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content, **options)


def test_row_numbers_under_the_name_of_a_lead_are_no_lead(tmp_path: Path) -> None:
    values = np.c_[np.arange(1000), MILLIVOLTS[:, 1:]]
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match="rises in equal steps in its column 1, which is to be I"):
        read_recording(tmp_path / "a.npy", 100, **NAMED)


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (0.002, "500 Hz if it is a period in seconds"), (2.0, "500 Hz if it is a period in ms"),
        (0.5, "500 Hz if it is in kHz"), (0.0001, ""), (0.0, ""), (-100.0, ""), (np.nan, "got nan"),
        (np.inf, "got inf"), (1e9, "25 to 100000"),
    ],
)  # fmt: skip
def test_a_rate_that_is_none_is_answered(tmp_path: Path, rate: float, said: str) -> None:
    with pytest.raises(ValueError, match=f"it must be a rate in Hz, not a period.*{said}|{said}.*not a period"):
        read(tmp_path, text(), given_rate=rate)


FACTORS = np.repeat([1, 1000], 6)
UNITS = np.repeat(["mV", "uV"], 6)


def _npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "a.npz", **arrays)
    return folder / "a.npz"


@pytest.mark.parametrize(
    ("arrays", "options"),
    [
        ({"signal": MILLIVOLTS}, NAMED),
        ({"signal": MILLIVOLTS.T[None], "fs": 100, "leads": np.array(LEADS)}, {}),
        ({**dict(zip(LEADS, MILLIVOLTS.T, strict=True)), "sampling_rate": 100}, {}),
        ({**dict(zip(LEADS, 1000 * MILLIVOLTS.T, strict=True)), "time": SECONDS, "units": "uV"}, {}),
        ({"x": MILLIVOLTS * FACTORS, "fs": 100, "leads": np.array(LEADS, "S3"), "units": UNITS}, {}),
    ],
)
def test_npz_is_the_same_signal(tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any]) -> None:
    recording = read_recording(_npz(tmp_path, **arrays), 100, **options)
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)


def test_npz_that_is_not_one_recording_is_answered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 2 arrays \(a, b\), expected one of shape"):
        read_recording(_npz(tmp_path, a=MILLIVOLTS, b=MILLIVOLTS), 100, **NAMED)
    with pytest.raises(ValueError, match=r"names the units mV, .*and no lead for each"):
        read_recording(_npz(tmp_path, a=MILLIVOLTS * FACTORS, units=UNITS), 100, **NAMED)
    with pytest.raises(ValueError, match="is not an array of numbers"):
        read_recording(_npz(tmp_path, a=np.array([{}])), 100, **NAMED)


def test_npy_is_read_in_either_orientation(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", MILLIVOLTS.T)
    recording = read_recording(tmp_path / "a.npy", 100, **NAMED)
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)
    assert recording.notes == ["read with a lead per row"]


def judged(folder: Path, values: npt.NDArray[Any], **options: Any) -> Recording:
    np.save(folder / "a.npy", values)
    return read_recording(folder / "a.npy", 100, **NAMED, **options)


def changed(rows: slice, leads: list[int], value: float) -> npt.NDArray[Any]:
    values = MILLIVOLTS.copy()
    values[rows, leads] = value
    return values


WHOLE = slice(None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (MILLIVOLTS / 1000, r"cannot be an ECG in mV, 12 of 12: I \(a range of .* fit volts: multiply by 1000"),
        (1000 * MILLIVOLTS, r"cannot be mV; convert it to mV: I \(a range of .* fit microvolts: divide by 1000"),
        (np.rint(200 * MILLIVOLTS).astype(np.int16), r"counts"),
        (MILLIVOLTS / 1e6, "the unit or the gain is wrong"),
        (MILLIVOLTS + 60, r"cannot be mV.* I \(a median of .*an offset"),
        (changed(WHOLE, list(range(8)), 0.01), r"is flat in most leads: I \(constant at 0\.01 mV\).*, V1, V2; "),
        (np.tile(MILLIVOLTS[:, :1], 12), "the same samples as every other lead.*one signal was copied"),
        ((MILLIVOLTS - MILLIVOLTS.mean(0)) / MILLIVOLTS.std(0), "they were standardised"),
        ((MILLIVOLTS - MILLIVOLTS.min(0)) / np.ptp(MILLIVOLTS, axis=0), "scaled by its own range"),
        (MILLIVOLTS / np.abs(MILLIVOLTS).max(0), "scaled by its own range"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_ecg_in_mv_is_refused_by_lead_value_and_cause(
    tmp_path: Path, values: npt.NDArray[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{message}.*--implausible accept"):
        judged(tmp_path, values)
    np.testing.assert_allclose(judged(tmp_path, values, implausible="accept").signal, values, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (changed(WHOLE, [0, 1], 0.0), "flat: I, II"),
        (MILLIVOLTS * np.where(np.arange(12) == 6, 1e-3, 1), "implausible: V1 (a range of "),
        (MILLIVOLTS[:, [*range(7), 6, *range(8, 12)]], "the same samples: V1, V2"),
        (np.clip(MILLIVOLTS * np.where(np.arange(12) == 7, 8, 1), -1.2, 9), "V2 is clipped at -1.2 mV"),
        (changed(slice(100, 350), [7], 0.05), "V2 does not change for 2.5 s from 1.0 s"),
        (changed(slice(100, 101), [7], 25.0), "V2 reaches "),
    ],
)  # fmt: skip
def test_what_is_odd_about_single_leads_is_named(tmp_path: Path, values: npt.NDArray[Any], note: str) -> None:
    notes = judged(tmp_path, values).notes
    assert [note in said for said in notes] == [True]


def test_stretches_without_samples_are_named(tmp_path: Path) -> None:
    notes = judged(tmp_path, changed(slice(100, 350), [7], np.nan), fill_missing="zero").notes
    assert notes == ["missing samples filled in V2 (250, at most 2.50 s from 1.00 s)"]


def test_a_generated_ecg_is_plausible_as_it_is(tmp_path: Path) -> None:
    for rhythm, seed in (("SR", 1), ("AFIB", 2), ("SR", 5)):
        values = simulate(rhythm, seed, np.random.default_rng(seed)) / 1000
        assert judged(tmp_path, values).notes == []
