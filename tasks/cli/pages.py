"""Help of the commands that take a recipe, on one screen; `--help_all` has every option of Lightning."""

SUBCOMMANDS = {
    "fit": "Trains a recipe, and tests its best validation at the end. The same command\nresumes an unfinished run.",
    "validate": "Validates the weights of a run.",
    "test": "Tests the weights of a run.",
    "predict": "Prints a prediction for each sample of --data.predict_file, or for the ECGs of\n--record.",
}
_RECIPE = """
the recipe: all that a training needs, in one YAML file
  --config RECIPE           a file, or a name that `msssm recipes` lists; the
                            config.yaml of a run is one, too
  --plugins PACKAGE         lets recipes name classes of your own package
  --print_config            prints the recipe with every option, and ends

the data
  --data.root FOLDER        where the data sets are
  --data.batch_size N       samples of a step
  --data.help CLASS         options of a class: datamodules.PTBXLDataModule

the model
  --model.lr X              peak learning rate
  --model.backbone.n_layers N, --model.backbone.d_model N
  --model.backbone.layer.levels N
  --model.help CLASS        options of a class: tasks.ECGTask

the run
  --run_dir FOLDER          checkpoints, TensorBoard events and metrics.json;
                            runs/latest by default
"""
_FIT = """  --seed_everything N       seed of weights and dropout; 0 by default
  --trainer.max_epochs N    --trainer.precision bf16-mixed
  --trainer.devices N       --trainer.accelerator cpu
  --checkpoint.monitor NAME the metric of the best validation, with
                            --checkpoint.mode max or min
  --ckpt_path FILE          trains on from these weights
  --skip_test true          leaves the test for later
"""
_OTHERS = """  --ckpt_path FILE          weights, where they are not the best of the run
  --trainer.devices N       --trainer.accelerator cpu
"""
_RECORD = """  --record PATH             an ECG, or a folder of them (msssm ecg --help)
"""
_EXAMPLES = {
    "fit": """  msssm fit --config quick/listops/msssm_s6 --run_dir runs/mine
  msssm fit --config ptbxl --data.root data --trainer.max_epochs 10""",
    "validate": "  msssm validate --config runs/mine/config.yaml",
    "test": "  msssm test --config runs/mine/config.yaml",
    "predict": """  msssm predict --config runs/mine/config.yaml \\
    --data.predict_file lines.txt""",
}


def usage(command: str) -> str:
    """Usage and purpose of a command."""
    return f"usage: msssm {command} --config RECIPE [--OPTION VALUE ...]\n\n{SUBCOMMANDS[command]}\n"


def page(command: str) -> str:
    """The screen of a command."""
    options = _FIT if command == "fit" else _OTHERS + (_RECORD if command == "predict" else "")
    return (
        f"{usage(command)}{_RECIPE}{options}\n"
        f"The keys of a recipe are its options. msssm {command} --help_all lists them all,\n"
        f"with those of Lightning's Trainer.\n\nexamples:\n{_EXAMPLES[command]}"
    )
