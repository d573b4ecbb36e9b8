"""What compression costs in answers: methods, questions asked of both sides, statistics."""
