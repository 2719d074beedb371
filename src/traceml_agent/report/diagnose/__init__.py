"""Rules: from figures to findings. Every threshold is a named constant with its source."""
