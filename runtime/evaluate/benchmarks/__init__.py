"""Public benchmarks: their official files, prompts and scores."""
