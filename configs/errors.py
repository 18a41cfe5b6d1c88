"""The base of the errors that a user causes and can correct; `pipeline.errors` draws the hierarchy."""


class UserError(ValueError):
    """A mistake of the user's.

    Args:
        message: one line: the file or option, what was found and what was expected.
        remedy: what to do about it, such as a command to type.
    """

    def __init__(self, message: str, remedy: str = ""):
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.message, self.remedy = message, remedy


def first_line(error: BaseException) -> str:
    """What an error says, short."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
