"""Presets as package data, so that an installed scan-pipeline finds them wherever it runs."""
