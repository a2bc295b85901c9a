"""`msssm predict --record`: the answer of one's own model about an ECG."""

from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from datamodules.ptbxl import PTBXLDataModule
from datamodules.ptbxl.statements import scp_statements
from msssm.errors import InputError
from tasks.ecg.recordings import options
from tasks.ecg.recordings.answer import answer
from tasks.ecg.recordings.inference import Windows
from tasks.ecg.recordings.model import Answers, ClassAnswer, ECGModel
from tasks.ecg.task import ECGTask
from tasks.run.checkpoint_io import read_checkpoint
from tasks.run.weights import check_weights


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of predict for a user's recording."""
    parser.add_argument(
        "--record",
        type=str | None,
        default=None,
        help="An ECG to predict: a WFDB record, a table (.csv, .tsv, .txt, .gz) or an array (.npy, .npz), in mV unless "
        "it names another unit; or a folder of them. Needs no data set.",
    )
    options.add_arguments(parser)


def predict_record(task: LightningModule, data: LightningDataModule | None, checkpoint: str, config: Namespace) -> None:
    """Answers about the recording or folder of `--record`, as `tasks.ecg.recordings.answer` does.

    Args:
        task: Task of the recipe, which takes the checkpoint's weights.
        data: Data module of the recipe; nothing is read.
        checkpoint: its path.
        config: of predict, with what `add_arguments` added.

    Raises:
        ValueError: a recipe or a checkpoint that is not of PTB-XL, or recordings that cannot be used.
        FileNotFoundError: no such recording.
    """
    if not isinstance(task, ECGTask) or not isinstance(data, PTBXLDataModule):
        raise InputError("--record needs a recipe with tasks.ECGTask and datamodules.PTBXLDataModule")
    model = load_checkpoint(task, Windows(data.crop, data.stride, task.aggregation), checkpoint)
    answer(model, [Path(config.record)], options.RecordingOptions.of(config))


def load_checkpoint(task: ECGTask, windows: Windows, checkpoint: str) -> ECGModel:
    """Puts a checkpoint's weights into the task, in `eval()`; its probabilities are as trained, without thresholds.

    Raises:
        ValueError: it cannot be read, or was trained with another recipe.
    """
    state = read_checkpoint(Path(checkpoint))
    check_weights(task, state, checkpoint)
    scaling = state.get(PTBXLDataModule.__name__)
    if scaling is None:
        raise InputError(f"{checkpoint} does not fit the recipe: it was not trained on PTB-XL")
    task.load_state_dict(state["state_dict"])
    described = scp_statements()["description"]
    classes = [ClassAnswer(name, str(described.get(name, name))) for name in scaling["classes"]]
    answers = Answers(task.label_set, scaling["mean"], scaling["std"], scaling["sampling_rate"], windows, classes)
    return ECGModel(checkpoint, task.eval().model, answers)
