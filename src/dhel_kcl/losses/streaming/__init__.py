"""Compute losses and their gradients tile by tile, on one device or across processes."""
