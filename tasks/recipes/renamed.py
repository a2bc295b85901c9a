"""Names of earlier versions and their new ones, for error messages."""

OPTIONS = {
    "checkpoint_blocks": "recompute",
    "delta_0": "dt_init",
    "delta_rank": "dt_rank",
    "drive": "ssm_input",
    "filters": "filter_init",
    "gates": "selective_input",
    "mixer_start": "mixer_init",
}
CLASSES = {
    "datamodules.SelectionDataModule": "datamodules.SelectiveCopyingDataModule",
    "datamodules.selection.SelectionDataModule": "datamodules.SelectiveCopyingDataModule",
    "tasks.bad_batches.SkipBadBatches": "tasks.SkipBadBatches",
    "tasks.dashboards.EpochLines": "tasks.run.dashboard.EpochLines",
}
# Of the commands that are not Lightning's.
COMMAND_OPTIONS = {
    "data generate": {"--rates": "--sampling_rates"},
    "diagnose": {"--rows": "--samples"},
    "sweep": {"--sweep_dir": "--results"},
}
# Parts of the names of weights.
WEIGHTS = {"channel_mixer.": "glu.", "norm.norm.": "norm.inner."}
