"""What a method must beat: as cheap, and without its idea."""
