"""Samplers: read counters of process, host and GPUs once an interval, in one thread."""
