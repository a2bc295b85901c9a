"""Electrocardiograms: the task, its dashboard, and answers for recordings."""
