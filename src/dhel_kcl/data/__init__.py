"""From images on disk to batches of augmented views: sources, betons (FFCV files), kernels, loaders."""
