"""From encoder to features, and from these to measurements."""
