"""The description of a job: where its files are, what it depends on, and what its manifest records."""
