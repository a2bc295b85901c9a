"""Processor time counts what was computed, not what was waited for, and resumes from a checkpoint."""

import time
from typing import cast

import lightning.pytorch as pl

from tasks.run.processor_time import ProcessorTime

TRAINER, MODULE = cast(pl.Trainer, None), cast(pl.LightningModule, None)


def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_computing_counts_and_waiting_does_not() -> None:
    meter = ProcessorTime()
    compute(0.02)
    assert meter.seconds == 0.0, "before the training"
    meter.on_train_start(TRAINER, MODULE)
    compute(0.05)
    time.sleep(0.3)
    meter.on_train_end(TRAINER, MODULE)
    counted = meter.seconds
    assert 0.05 <= counted < 0.25
    compute(0.02)
    assert meter.seconds == counted, "after the training"


def test_a_resumed_training_continues_to_count() -> None:
    first, second = ProcessorTime(), ProcessorTime()
    first.on_train_start(TRAINER, MODULE)
    compute(0.02)
    saved = first.state_dict()
    compute(0.02)
    second.load_state_dict(saved)
    second.on_train_start(TRAINER, MODULE)
    compute(0.02)
    second.on_train_end(TRAINER, MODULE)
    assert 0.04 <= second.seconds < first.seconds + 0.1
    assert second.seconds >= saved["seconds"] + 0.02
