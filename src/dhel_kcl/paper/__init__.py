"""From the tidy table to figures, tables and pages."""
