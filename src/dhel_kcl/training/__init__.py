"""From beton to encoder: pretraining one run."""
