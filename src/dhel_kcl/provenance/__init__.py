"""Whether everything is still what it was made from, and how to publish it."""
