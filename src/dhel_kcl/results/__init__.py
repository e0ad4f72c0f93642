"""Collect measurements into the tidy table, and derive statistics and verdicts from it."""
