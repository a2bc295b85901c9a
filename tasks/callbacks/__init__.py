"""Callbacks of the trainer: dashboards and guards."""
