"""The configuration of an experiment, its schema and its defaults."""
