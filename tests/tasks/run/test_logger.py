"""TensorBoard's hyperparameters have the names of the command line's options."""

from tasks.run.logger import option_names


def test_hyperparameters_have_the_names_of_options() -> None:
    layer = {"class_path": "msssm.MultiScaleSSM", "init_args": {"levels": 3}}
    backbone = {"class_path": "msssm.Backbone", "init_args": {"layer": layer, "d_model": 8}}
    params = {"_class_path": "tasks.ListOpsTask", "_instantiator": "lightning", "backbone": backbone, "lr": 0.01}
    assert option_names(params) == {
        "task": "tasks.ListOpsTask",
        "backbone": "msssm.Backbone",
        "backbone.layer": "msssm.MultiScaleSSM",
        "backbone.layer.levels": 3,
        "backbone.d_model": 8,
        "lr": 0.01,
    }
