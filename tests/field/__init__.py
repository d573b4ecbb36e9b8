"""What real checkpoints, files, cameras, prompts and users bring: the right value of each."""
