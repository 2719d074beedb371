"""The sections of a summary, each from a RunView."""
