"""How losses and their gradients are computed tile by tile, on one device or across processes."""
