"""What real files, cameras and checkpoints brought: one module for each area."""
