"""What files, cameras, checkpoints and machines of the field broke, and the right values."""
