"""The error a user can cause and mend."""


class PipelineError(ValueError):
    """One line: the file, what was found, what was expected, the remedy. The CLI ends with it and exit code 2."""
