"""From files to a summary. Never imports torch, and needs no running process."""
