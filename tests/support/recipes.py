"""A recipe small enough to train in a second, on a real ListOps of short expressions."""

from pathlib import Path

import yaml

from tasks.cli.main import main

TINY_DATA = [
    "--data.min_length=4",
    "--data.max_length=30",
    "--data.max_depth=4",
    "--data.max_args=4",
    "--data.train_size=200",
    "--data.val_size=40",
    "--data.test_size=40",
    "--data.num_workers=0",
]


def write_recipe(folder: Path, *, max_epochs: int = 2) -> Path:
    """A complete recipe below `folder`, with its data and runs."""
    recipe = {
        "seed_everything": 0,
        "run_dir": f"{folder}/runs/seed${{seed_everything}}",
        "model": {
            "class_path": "tasks.ListOpsTask",
            "init_args": {
                "lr": 0.01,
                "warmup_epochs": 0.5,
                "backbone": {
                    "class_path": "msssm.Backbone",
                    "init_args": {
                        "d_model": 8,
                        "n_layers": 1,
                        "norm": "batch",
                        "dropout": 0.1,
                        "layer": {
                            "class_path": "msssm.MultiScaleSSM",
                            "init_args": {"levels": 2, "kernel_size": 2, "state_size": 2},
                        },
                    },
                },
            },
        },
        "data": {
            "class_path": "datamodules.ListOpsDataModule",
            "init_args": {
                "root": f"{folder}/data",
                "batch_size": 20,
                "shuffle_seed": "${seed_everything}",
                "min_length": 4,
                "max_length": 30,
                "max_depth": 4,
                "max_args": 4,
                "train_size": 200,
                "val_size": 40,
                "test_size": 40,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": max_epochs,
            "log_every_n_steps": 2,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def fit(recipe: Path, *options: str) -> None:
    """`msssm fit` in this process."""
    main(["fit", "--config", str(recipe), *options])
