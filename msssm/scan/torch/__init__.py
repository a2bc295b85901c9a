"""The scans in plain torch."""
