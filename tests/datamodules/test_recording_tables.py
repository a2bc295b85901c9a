"""Tables of samples: the same signal from each documented form, and nothing guessed from prose, names or values."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datamodules.ptbxl import LEADS, Recording, read_recording, simulate
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


def below_units(unit: str) -> str:
    return ",".join(LEADS) + "\n" + ",".join([unit] * 12) + "\n" + text(1000 * FRAME, header=False)


MOMENTS = pd.date_range("2024-01-31", periods=1000, freq="10ms")
CLOCK = [f"'0:{seconds:06.3f}'" for seconds in SECONDS]
FORMS: dict[str, tuple[str | bytes, dict[str, Any]]] = {
    **{f"separator {sep!r}": (text(sep=sep), RATE) for sep in ",;\t "},
    **{f"decimal comma, separator {sep!r}": (text(sep=sep, decimal=","), RATE) for sep in ";\t"},
    "BOM": (text().encode("utf-8-sig"), RATE),
    "UTF-16": (text().encode("utf-16"), RATE),
    "Latin-1 micro sign": (named("{} (µV)".format, 1000).encode("latin-1"), RATE),
    "UTF-8 micro sign": (named("{} [µV]".format, 1000), RATE),
    "volts": (named("{} [V]".format, 1e-3), RATE),
    "a row of units": (below_units("uV"), RATE),
    "a row of units in brackets": (below_units("(uV)"), RATE),
    "Lead I": (named("Lead {}".format), RATE),
    "I_mV": (named("{}_mV".format), RATE),
    "lower case": (named(str.lower), RATE),
    "quoted": (text(quoting=2), RATE),
    "CRLF, separators at the end, empty lines": (text(sep=";").replace("\n", ";\r\n") + "\r\n;;;;;\r\n\r\n", RATE),
    "comments": ("# fs = 100 Hz\n% of nobody\n" + text(), {}),
    "kHz": ("# sampling rate: 0.1 kHz\n" + text(), {}),
    "prose with names of leads": ("Leads of it: I, II\n" + text(), RATE),
    "lines before the header": ("Patient;Nobody\nSampling frequency (Hz);100\n\n" + text(sep=";"), {}),
    "no header": (text(header=False), NAMED),
    "no header, decimal commas": (text(header=False, sep=";", decimal=","), NAMED),
    "unknown names": (named("channel {} of it".format), NAMED),
    "an unnamed index": (text(index=True), RATE),
    "marks and row numbers": (text(FRAME.assign(mark="N", n=range(1000))[["mark", *LEADS, "n"]]), RATE),
    "columns to leave out": (first("n", range(1000)), {**RATE, "given_leads": ["x", *LEADS]}),
    "seconds": (first("time", SECONDS), {}),
    "seconds, names given": (first("time", SECONDS), {"given_leads": LEADS}),
    "milliseconds": (first("t (ms)", 1000 * SECONDS), {}),
    "microseconds": (first("time_us", 1e6 * SECONDS), {}),
    "nanoseconds since 1970": (first("timestamp (ns)", (1.7e18 + 1e9 * SECONDS).astype(np.int64)), {}),
    "ISO": (first("date", MOMENTS.strftime("%Y-%m-%dT%H:%M:%S.%f")), {}),
    "PhysioNet": (",".join(["'Elapsed time'", *(f"'{lead.lower()}'" for lead in LEADS)]) + "\n'hh:mm:ss.mmm'"
                  + ",'mV'" * 12 + "\n" + text(FRAME.set_axis(pd.Index(CLOCK)), header=False, index=True), {}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_each_documented_form_is_the_same_signal(tmp_path: Path, form: str) -> None:
    content, options = FORMS[form]
    recording = read(tmp_path, content, **options)
    assert recording.original_rate == 100
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=METRIC)


PROSE = [
    "Mains frequency: 50 Hz", "Low-pass filter,150 Hz", "Notch frequency = 60", "Rate: 75 /min", "Heart rate;80",
    "Sampling rate of the display: 25 Hz", "frequency 50",
]  # fmt: skip


@pytest.mark.parametrize("prose", PROSE)
def test_a_rate_is_read_from_its_own_line_alone(tmp_path: Path, prose: str) -> None:
    recording = read(tmp_path, f"{prose}\nSampling rate: 100 Hz\n{text()}")
    assert recording.original_rate == 100
    assert read(tmp_path, f"{prose}\n{text()}", **RATE).original_rate == 100
    with pytest.raises(ValueError, match="needs a sampling rate in Hz"):
        read(tmp_path, f"# {prose}\n{text()}")


@pytest.mark.parametrize(
    "content",
    [
        first("time", SECONDS / 2), "# fs: 200\n" + text(), first("t", SECONDS**2), "# fs: 2\n" + first("t", SECONDS),
        "# fs: fast\n" + text(),
    ],
)  # fmt: skip
def test_a_given_rate_wins_over_a_table(tmp_path: Path, content: str) -> None:
    recording = read(tmp_path, content, **RATE)
    assert recording.original_rate == 100
    assert len(recording.notes) == 1


def test_given_units_and_leads_win_over_a_table(tmp_path: Path) -> None:
    backwards = text(1000 * FRAME.iloc[:, ::-1].set_axis([f"{lead} (mV)" for lead in LEADS], axis=1))
    recording = read(tmp_path, backwards, **RATE, given_leads=LEADS[::-1], given_unit="uV")
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)


def test_polarity_is_honoured_and_other_names_are_no_leads(tmp_path: Path) -> None:
    frame = FRAME.assign(AVR=-FRAME["AVR"], V1=-FRAME["V1"]).assign(resp=1.0)
    turned = frame.rename(columns={"AVR": "-aVR", "II": "MLII", "V1": "-V1"})
    recording = read(tmp_path, text(turned), **RATE)
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)
    assert recording.notes == [
        "MLII taken as II", "-aVR turned over to AVR", "-V1 turned over to V1", "not used: resp"
    ]  # fmt: skip
    for name in ("V1 inverted", "\u2212V1", "V1 - V2", "V1/V6"):
        with pytest.raises(ValueError, match="without V1"):
            read(tmp_path, text(frame.rename(columns={"V1": name})), **RATE)


def test_leads_that_begin_late_and_one_that_never_does_keep_their_rows(tmp_path: Path) -> None:
    frame = FRAME.copy()
    frame.loc[:4, ["V4", "V5"]] = np.nan
    frame["V6"] = np.nan
    recording = read(tmp_path, text(frame), fill_missing="zero", **RATE)
    assert recording.signal.shape == (1000, 12)
    assert recording.missing.sum(0).tolist() == [0] * 9 + [5, 5, 1000]


@pytest.mark.parametrize("german", [False, True])
def test_one_lead_of_a_watch(tmp_path: Path, german: bool) -> None:
    """Exports of an Apple Watch; a German one has decimal commas."""
    keys = ("Messrate", "Ableitung", "Ableitung I", "Einheit") if german else ("Sample Rate", "Lead", "Lead I", "Unit")
    samples = "\n".join(f"{1000 * value:.3f}" for value in MILLIVOLTS[:, 0])
    samples = samples.replace(".", ",") if german else samples
    head = f'Name,Nobody\nVersion,"1,2"\n{keys[0]},"100 hertz"\n\n{keys[1]},{keys[2]}\n{keys[3]},µV\n\n'
    recording = read(tmp_path, head + samples, fill_missing="zero")
    np.testing.assert_allclose(recording.signal[:, 0], MILLIVOLTS[:, 0], rtol=0, atol=METRIC)
    assert recording.missing[:, 1:].all()


@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.csv.gz", "A.TXT.GZ"])
def test_other_endings_are_read(tmp_path: Path, name: str) -> None:
    content = text(sep="\t").encode()
    recording = read(tmp_path, gzip.compress(content) if name.lower().endswith("gz") else content, name, **RATE)
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)
    assert recording.name.lower() == "a"


def test_an_age_above_the_table_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "Age: 18 months\n" + text(), **RATE).age == 1.5
    assert read(tmp_path, "Age: 63 M\n" + text(), **RATE).age is None


BROKEN = text().split("\n")
JUMP = np.where(np.arange(1000) < 500, SECONDS, SECONDS + 3)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (text(header=False), RATE, r"no lead among the names of its 12 columns .*--leads"),
        (named("ch{}x".format), RATE, r"no lead among the names of its 12 columns \('chIx'.*expected I, II.*--leads"),
        (text(), {**RATE, "given_leads": LEADS[:11]}, "has 12 columns, and --leads names 11"),
        (text(decimal=",", sep=",").replace('"', ""), RATE, "its line 2 has 24 columns, and 12 have names"),
        (named("{} (counts)".format), RATE, "is in counts, expected mV"),
        (named("{} (kV)".format), RATE, "is in kV, expected mV"),
        (named("{} (left)".format), RATE, "is in left, expected mV"),
        ("\n".join([*BROKEN[:500], "oops," + BROKEN[500], *BROKEN[501:]]), RATE, "its line 501 has 13 columns"),
        ("\n".join([*BROKEN[:500], BROKEN[500] + "oops", *BROKEN[501:]]), RATE, "its line 501 has '.*oops' for V6"),
        (text()[:-20], RATE, r"its line 1001 has \d+ columns, and 12"),
        (b"PK\x03\x04" + bytes(50), RATE, "has no lead|is not a table"),
        ("", RATE, "has no lead among the names of its 0 columns"),
        ("I,II\n", RATE, "it has no rows"),
        (gzip.compress(text().encode())[:-9], {**RATE, "name": "a.csv.gz"}, "cannot be read"),
        ("# fs: 200\n" + first("time", SECONDS), {}, "disagreeing: 200 Hz by its line 'fs', 100 Hz by its column"),
        ("# fs: 200\n# sampling rate: 100\n" + text(), {}, "disagreeing: 200 Hz by"),
        ("# fs: 100\n# fs: 50\n" + text(), {}, "disagreeing: 100 Hz by its line 'fs', 50 Hz by its line 'fs'"),
        ("# fs: fast\n" + text(), {}, "its line 'fs' says 'fast', which is no rate in Hz"),
        (first("time", JUMP), {}, "needs a sampling rate .*its column 'time' is not in equal steps"),
        (first("time (s)", 1e-5 * SECONDS), {}, r"sampled at 1e\+07 Hz by what it says"),
        (first("time", 1000 * SECONDS), {}, r"sampled at 0\.1 Hz by what it says, expected .* not a period"),
        (first("n", range(1000)), {}, "needs a sampling rate in Hz: --sampling_rate"),
    ],
)
def test_a_table_that_cannot_be_read_is_answered(tmp_path: Path, content: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content, **options)
