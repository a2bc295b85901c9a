"""Images: the task and its dashboard."""
