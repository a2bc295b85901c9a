"""Options of a recipe, searched by Optuna."""
