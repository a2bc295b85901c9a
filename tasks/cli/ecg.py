"""`msssm ecg`: a shipped model's answer about ECGs, with no recipe, no checkpoint and no data set."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from datamodules.ptbxl.synthetic import simulate, write_record
from tasks.cli.parser import CommandParser
from tasks.ecg.paper import RESEARCH
from tasks.ecg.recordings.answer import answer
from tasks.ecg.recordings.model import ecg_models, read_model
from tasks.ecg.recordings.options import RecordingOptions, add_arguments
from tasks.paths import path_option

ASKED = """A recording is a 12-lead ECG at rest, like PTB-XL's: 10 s, in mV, as the electrocardiograph gives it. Any
rate, order and usual name of the leads will do, in a WFDB record (.hea), EDF (.edf, .bdf), DICOM (.dcm), a table
(.csv, .tsv, .txt, also .gz) or an array (.npy, .npz); without a unit, mV is assumed. What was done to a recording,
and how it is unlike PTB-XL, is printed."""

EXAMPLES = """
msssm ecg recording.hea
msssm ecg recordings --output answers
msssm ecg ecg.csv --sampling_rate 257 --stream
"""


def main(args: list[str]) -> None:
    """Prints the probability of each statement, and writes .json, .csv and a picture on ECG paper.

    Raises:
        ValueError: recordings that cannot be used; the others are answered first.
        FileNotFoundError: no such recording or model.
    """
    parser = CommandParser("ecg", main, EXAMPLES)
    parser.description = f"{parser.description}\n\n{ASKED} {RESEARCH}"
    parser.add_argument(
        "recordings",
        nargs="*",
        type=path_option,
        metavar="RECORDING",
        help="files, or folders of them; with none, the models are listed, and a generated example is answered",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="a shipped model's, or a folder; default: the best of the shipped ones"
    )
    add_arguments(parser)
    options = parser.parse_args(args)
    if options.recordings:
        answer(read_model(options.model), options.recordings, RecordingOptions.of(options))
        return
    print("\n".join(["usage: msssm ecg RECORDING ...", *_models(), ASKED, RESEARCH]))
    if options.model is None and not ecg_models():
        return
    print("\nA generated example, of no patient:\n")
    with TemporaryDirectory() as folder:
        path = Path(folder, "generated_example")
        write_record(path, simulate("SR", 6, np.random.default_rng(0), 500), 500)
        answer(read_model(options.model), [path.with_suffix(".hea")], RecordingOptions.of(options))


def _models() -> list[str]:
    models = ecg_models()
    if not models:
        return ["no model is shipped with this version: --model names a folder that msssm export --ecg wrote"]
    return [
        f"  {name:16} {len(model.classes)} statements of PTB-XL ({model.label_set}), {model.sampling_rate} Hz; macro "
        f"AUROC on fold 10 {model.test['auroc']:.3f}{'' if index else '; the default'}"
        for index, (name, model) in enumerate(models.items())
    ]
