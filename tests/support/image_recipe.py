"""A recipe of an image task that trains in seconds, on the digits."""

from pathlib import Path
from typing import Any

import yaml


def write_image_recipe(folder: Path, *, max_epochs: int = 2, **task: Any) -> Path:
    """A complete recipe below `folder`, with its runs; `task` overrides arguments of the task."""
    recipe = {
        "seed_everything": 0,
        "run_dir": f"{folder}/run",
        "model": {
            "class_path": "tasks.ImageTask",
            "init_args": {
                "image_size": 8,
                "patch_size": 2,
                "in_channels": 1,
                "num_classes": 10,
                "lr": 0.01,
                "warmup_epochs": 0.5,
                "backbone": {
                    "class_path": "msssm.Backbone",
                    "init_args": {
                        "d_model": 16,
                        "n_layers": 1,
                        "norm": "batch",
                        "dropout": 0.1,
                        "layer": {
                            "class_path": "msssm.MultiScaleSSM",
                            "init_args": {"levels": 2, "kernel_size": 2, "state_size": 2},
                        },
                    },
                },
                **task,
            },
        },
        "data": {
            "class_path": "datamodules.DigitsDataModule",
            "init_args": {"batch_size": 64, "eval_batch_size": 90, "shuffle_seed": "${seed_everything}"},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": max_epochs,
            "log_every_n_steps": 5,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
