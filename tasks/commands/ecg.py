"""`msssm ecg`: what a shipped model says about ECGs, with no recipe, no checkpoint and no data set."""

import argparse
from typing import get_args

from datamodules.ptbxl.recording import FillMissing, Implausible
from tasks.paths import path_option
from tasks.recordings.answer import RecordingOptions, answer
from tasks.recordings.model import ecg_models, read_model
from tasks.reports.ecg_paper import RESEARCH

ASKED = """A recording is 12 leads of an ECG at rest, like PTB-XL's: 10 s, in mV, as the electrocardiograph gives them.
Any rate, order and usual name of the leads will do, in a WFDB record (.hea), a table (.csv, .tsv, .txt, also .gz) or an
array (.npy, .npz); mV is meant where no unit is named. What was done to it, and how it is unlike PTB-XL, is said."""


def main(args: list[str]) -> None:
    """Prints the probability of each statement, and writes .json, .csv and a picture on ECG paper. See docs/ecg.md.

    Raises:
        ValueError: recordings that cannot be used; the others are answered first.
        FileNotFoundError: no such recording or model.
    """
    parser = argparse.ArgumentParser(prog="msssm ecg", description=f"{main.__doc__.split('. ')[0]}.", epilog=ASKED)
    parser.add_argument(
        "recordings", nargs="*", type=path_option, help="files, or folders of them; without any, the models are listed"
    )
    parser.add_argument("--model", help="a shipped model's name, or a folder; default: the best of the shipped ones")
    parser.add_argument("--sampling_rate", type=float, help="Hz, of a file that has no rate and no column of times")
    parser.add_argument(
        "--leads", type=_names, help="I,II,..: the columns in order, of a file that does not name them; x skips one"
    )
    parser.add_argument(
        "--fill_missing", choices=get_args(FillMissing), default="derive",
        help="missing leads and samples: no (an error), derive (limb leads from I and II; the default), zero (that, and "
        "the mean)",
    )  # fmt: skip
    parser.add_argument(
        "--implausible", choices=get_args(Implausible), default="refuse",
        help="where most leads are flat or cannot be an ECG in mV: refuse, or accept (take them as they are)",
    )  # fmt: skip
    parser.add_argument("--stream", action="store_true", help="also feed the recording sample by sample")
    parser.add_argument("--output", type=path_option, default="predictions", help="folder; default: predictions")
    options = parser.parse_args(args)
    if not options.recordings:
        print("\n".join(["usage: msssm ecg RECORDING ..", *_listed(), "", ASKED, RESEARCH]))
        return
    reading = RecordingOptions(
        options.sampling_rate, options.leads, options.fill_missing, options.implausible, options.stream, options.output
    )
    answer(read_model(options.model), options.recordings, reading)


def _names(text: str) -> list[str]:
    """As `predict` takes them, `[I, II, ..]`, or without the brackets."""
    return [name.strip() for name in text.strip().removeprefix("[").removesuffix("]").split(",")]


def _listed() -> list[str]:
    models = ecg_models()
    if not models:
        return ["no model is shipped with this version: --model names a folder that msssm export --ecg wrote"]
    return [
        f"  {name:16} {len(model.classes)} statements of PTB-XL ({model.label_set}), {model.sampling_rate} Hz; macro "
        f"AUROC on the test fold {model.test['auroc']:.3f}{'' if index else '; the default'}"
        for index, (name, model) in enumerate(models.items())
    ]
