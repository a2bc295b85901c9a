"""One's own sequences of numbers: the task, and what it standardises by."""
