"""Token sequences: the tasks, and ListOps' report."""
