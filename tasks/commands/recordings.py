"""`msssm predict --record`: what a model of one's own says about an ECG that a user brings."""

from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from datamodules.ptbxl import PTBXLDataModule
from datamodules.ptbxl.recording import FillMissing, Implausible
from datamodules.ptbxl.statements import scp_statements
from msssm.errors import InputError
from tasks.base import SequenceTask
from tasks.ecg import ECGTask
from tasks.recordings.answer import RecordingOptions, answer
from tasks.recordings.inference import Windows
from tasks.recordings.model import Answers, ClassAnswer, ECGModel
from tasks.run.checkpoint_io import read_checkpoint
from tasks.run.weights import check_weights


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of predict for a user's recording."""
    parser.add_argument(
        "--record", type=str | None, default=None,
        help="An ECG to predict: a WFDB record, a table (.csv, .tsv, .txt, .gz) or an array (.npy, .npz), in mV unless "
        "it names another unit; or a folder of them. Needs no data set.",
    )  # fmt: skip
    parser.add_argument(
        "--sampling_rate",
        type=float | None,
        default=None,
        help="Hz, of a file that has no rate and no column of times.",
    )
    parser.add_argument(
        "--leads", type=list[str] | None, default=None,
        help="Names of the columns in order, of a file that does not name them; any other name, as x, skips a column.",
    )  # fmt: skip
    parser.add_argument(
        "--fill_missing", type=FillMissing, default="no",
        help="Missing leads and samples: no (an error), derive (limb leads from I and II), zero (that, and the mean).",
    )  # fmt: skip
    parser.add_argument(
        "--implausible", type=Implausible, default="refuse",
        help="Where most leads are flat or cannot be an ECG in mV: refuse, or accept (take them as they are).",
    )  # fmt: skip
    parser.add_argument("--stream", action="store_true", help="Feed the recording sample by sample.")
    parser.add_argument("--output", type=str, default="predictions", help="Folder for .json, .csv and .png.")


def predict_record(task: SequenceTask, data: LightningDataModule | None, checkpoint: str, config: Namespace) -> None:
    """What a checkpoint says about the recording or folder of `--record`, see `tasks.recordings.answer`.

    Args:
        task: of the recipe; takes the checkpoint's weights.
        data: likewise; nothing is read.
        checkpoint: a path.
        config: of predict, with what `add_arguments` added.

    Raises:
        ValueError: a recipe or a checkpoint that is not of PTB-XL, or recordings that cannot be used.
        FileNotFoundError: no such recording.
    """
    if not isinstance(task, ECGTask) or not isinstance(data, PTBXLDataModule):
        raise InputError("--record needs a recipe with tasks.ECGTask and datamodules.PTBXLDataModule")
    model = load_checkpoint(task, Windows(data.crop, data.stride, task.aggregation), checkpoint)
    options = RecordingOptions(
        config.sampling_rate, config.leads, config.fill_missing, config.implausible, config.stream, Path(config.output)
    )
    answer(model, [Path(config.record)], options)


def load_checkpoint(task: ECGTask, windows: Windows, checkpoint: str) -> ECGModel:
    """Puts a checkpoint's weights into the task, in eval(); its probabilities are as trained, without thresholds.

    Raises:
        ValueError: it cannot be read, or was trained with another recipe.
    """
    state = read_checkpoint(Path(checkpoint))
    check_weights(task, state, checkpoint)
    scaling = state.get(PTBXLDataModule.__name__)
    if scaling is None:
        raise InputError(f"{checkpoint} does not fit the recipe: it was not trained on PTB-XL")
    task.load_state_dict(state["state_dict"])
    descriptions = scp_statements()["description"]
    classes = [ClassAnswer(name, str(descriptions.get(name, name))) for name in scaling["classes"]]
    answers = Answers(
        task.label_set, scaling["mean"], scaling["std"], scaling["sampling_rate"], windows, classes
    )
    return ECGModel(checkpoint, task.eval().model, answers)
