"""Features of the frozen encoder and the measurements made on them."""
