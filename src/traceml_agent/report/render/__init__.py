"""A summary as text."""
