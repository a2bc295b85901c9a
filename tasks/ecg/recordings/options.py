"""Options of `msssm ecg` and of `msssm predict --record`: how recordings are read, and where the results go."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from datamodules.ptbxl.recording import FillMissing, Implausible, Recording, Unit, read_recording
from msssm.paths import local_path


@dataclass(frozen=True)
class RecordingOptions:
    """Options that `add_reading` and `add_arguments` describe; the first five are those of `read_recording`."""

    sampling_rate: float | None
    unit: Unit | None
    leads: list[str] | None
    fill_missing: FillMissing
    implausible: Implausible
    stream: bool = False
    output: Path = Path("predictions")

    @classmethod
    def of(cls, parsed: Any) -> "RecordingOptions":
        """Takes them from a parsed command line."""
        values = {field.name: getattr(parsed, field.name) for field in fields(cls) if hasattr(parsed, field.name)}
        leads = values["leads"] and [name.strip() for name in values["leads"].strip("[] ").split(",")]
        return cls(**{**values, "leads": leads, "output": local_path(values["output"])})

    def read(self, file: Path, sampling_rate: int) -> Recording:
        """Reads one recording at the rate of a model (Hz), see `read_recording`."""
        return read_recording(
            file,
            sampling_rate,
            given_rate=self.sampling_rate,
            given_unit=self.unit,
            given_leads=self.leads,
            fill_missing=self.fill_missing,
            implausible=self.implausible,
        )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how recordings are read."""
    parser.add_argument(
        "--sampling_rate", type=float, metavar="HZ", help="of a file that does not state it; wins over a table's text"
    )
    parser.add_argument(
        "--unit", choices=get_args(Unit), help="of a file that does not state it; without both, mV; wins over a table's"
    )
    parser.add_argument(
        "--leads",
        type=str,
        metavar="NAMES",
        help="I,II,..: the columns in order, of a file that does not name them; any other name, as x, skips a column",
    )
    parser.add_argument(
        "--fill_missing",
        choices=get_args(FillMissing),
        default="derive",
        help="missing leads and samples: no (an error), derive (limb leads from I and II; the default), zero (also "
        "fills the rest with the mean)",
    )
    parser.add_argument(
        "--implausible",
        choices=get_args(Implausible),
        default="refuse",
        help="recordings whose amplitude cannot be that of an ECG in mV: refuse (the default) or accept",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds all options of an answer."""
    add_reading(parser)
    parser.add_argument("--stream", action="store_true", help="also feed the recording sample by sample")
    parser.add_argument(
        "--output", default="predictions", metavar="FOLDER", help="for .json, .csv and .png; default: predictions"
    )
