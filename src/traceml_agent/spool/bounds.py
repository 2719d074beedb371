"""Between which bounds the numbers of all records lie."""

LAST_STEP = 1 << 36
"""Chosen: two years of steps of 1 ms."""
MOST_PER_STEP = 1 << 27
"""Micro-batches, samples and updates of a step. Chosen: with LAST_STEP, sums stay below 64 bits."""
LAST_NS = 1 << 62
"""Of a clock. Chosen: the wall clock of the year 2116."""
LONGEST_NS = 1 << 58
"""Of a duration, nine years. Chosen: the sum of all phases stays below 64 bits."""
MOST = (1 << 63) - 1
"""Of any other number: what JSON and numpy hold."""
LAST_BUCKET = 2100
"""Of a sketch. Source: a little above that of LONGEST_NS."""
LEAST = 1e-12
"""Of a number that is not 0. Chosen: no division by it leaves the range of a float."""
