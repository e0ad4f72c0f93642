"""Checking that results still match what they were made from, and publishing them."""
