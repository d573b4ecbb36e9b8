"""What was found, as tables, documents and a page with charts."""
