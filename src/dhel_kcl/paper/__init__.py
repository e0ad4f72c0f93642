"""Making figures, tables and pages from the tidy tables."""
