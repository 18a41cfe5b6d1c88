"""Presets as package data, so that an installed scan-pipeline finds them, and the limits of fields that all packages share."""
