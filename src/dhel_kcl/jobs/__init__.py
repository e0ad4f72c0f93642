"""How one job is described: where its files lie, what it depends on, what its manifest records."""
