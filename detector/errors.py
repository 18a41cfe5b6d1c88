"""The error that a user of this package causes and can correct."""


class DetectorError(ValueError):
    """Weights, settings or images that the detector cannot use.

    Args:
        message: one line: the file or setting, what was found and what was expected.
        remedy: what to do about it.
    """

    def __init__(self, message: str, remedy: str = ""):
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.message, self.remedy = message, remedy
