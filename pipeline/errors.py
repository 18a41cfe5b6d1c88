"""Errors that a user causes and can correct. The command line prints each as one line and exits with code 2.

    ValueError
    ├── PipelineError            files, options and data of the pipeline
    │   └── UnreadableImage      a file that is not a usable photo
    ├── DetectorError            weights and input of the detector (detector.errors)
    └── MatcherError             model, captions and scores of the matcher (matcher.errors)

Every other exception is a bug and keeps its traceback.
"""


class PipelineError(ValueError):
    """A mistake of the user's.

    Args:
        message: one line: the file or option, what was found and what was expected.
        remedy: what to do about it, such as a command to type.
    """

    def __init__(self, message: str, remedy: str = ""):
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.message, self.remedy = message, remedy


class UnreadableImage(PipelineError):
    """Why a file is not an image that can be used."""
