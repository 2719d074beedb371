"""The spool: one append-only JSONL file a process, and the memory-mapped ring in front of it."""
