"""What frameworks know of their own loops. Each file is imported only where its framework is."""
