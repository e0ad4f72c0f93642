"""From measurements to the tidy table, and from it to statistics and verdicts."""
