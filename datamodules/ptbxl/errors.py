"""The error of a record that cannot be used."""

from msssm.errors import InputError


class CorruptRecordError(InputError):
    """Record that contradicts its header, its data set or the options; the message is the reason alone."""
