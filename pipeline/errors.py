"""Errors that a user causes and can correct. The command line prints each as one line and exits with code 2.

    ValueError
    └── UserError                    message and remedy (configs.errors)
        ├── PipelineError            files, options and data of the pipeline
        │   ├── UnreadableImage      a file that is not a usable photo
        │   └── DamagedShard         a part of a store whose bytes are not those that were written
        ├── DetectorError            weights and input of the detector (detector.errors)
        └── MatcherError             model, captions and scores of the matcher (matcher.errors)

Every other exception is a bug and keeps its traceback.
"""

import re

from configs.errors import UserError

CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # all but line feed and tab


class PipelineError(UserError):
    """A file, an option or data that the pipeline cannot use."""


class UnreadableImage(PipelineError):
    """Why a file is not an image that can be used."""


class DamagedShard(PipelineError):
    """Features of a store that are not those of its photos."""


def printable(text: object) -> str:
    """Text that cannot command a terminal: control characters and changes of direction become escapes."""
    return CONTROLS.sub(lambda match: repr(match[0])[1:-1], str(text))
