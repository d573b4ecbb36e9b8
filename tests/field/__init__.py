"""What happened to users in the field, and what testers broke on purpose; one module per area."""
