"""What real checkpoints, prompts, cameras and files do, each with the value that is right."""
