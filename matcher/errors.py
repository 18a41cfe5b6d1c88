"""The error that a user of this package causes and can correct."""

from configs.errors import UserError


class MatcherError(UserError):
    """A model, captions or scores that the matcher cannot use."""
