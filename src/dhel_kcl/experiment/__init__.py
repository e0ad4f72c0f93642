"""What is to be run: the configuration, its schema and its defaults."""
