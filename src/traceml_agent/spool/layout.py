"""How a step lies in the ring. Imports nothing that a program may hide: it comes with torch."""

import struct

from traceml_agent.schema.phases import PHASES

HEADER_SIZE = 64
# step, start, duration, the phases, d2h, micro_batches, samples (-1: not seen), updates, step
RECORD = struct.Struct(f"<{3 + len(PHASES) + 5}q")
RECORD_SIZE = RECORD.size
pack_step = RECORD.pack_into
RESTED = -1
"""RESTED less so many nanoseconds in the place of d2h: for these nobody looked at this step."""
