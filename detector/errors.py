"""The error a user can cause and mend."""


class DetectorError(ValueError):
    """One line: the file, what was found, what was expected, the remedy."""
