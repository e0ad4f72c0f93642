"""Pretrain one run: from a beton to an encoder."""
