"""The error that a user of this package causes and can correct."""

from configs.errors import UserError


class DetectorError(UserError):
    """Weights, settings or images that the detector cannot use."""
