"""Presets as package data, so that an installed scan-pipeline finds them, and what all packages share: limits of fields, errors, files."""
