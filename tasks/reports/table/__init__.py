"""The table of one results folder."""
