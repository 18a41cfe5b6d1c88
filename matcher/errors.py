"""The one exception a user's mistake raises in this package."""


class MatcherError(ValueError):
    """Wrong input: one line that names what was found, what was expected and the remedy."""
