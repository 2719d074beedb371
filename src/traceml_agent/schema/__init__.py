"""What is written down: names of phases, records of a spool, the summary. Stdlib only."""
