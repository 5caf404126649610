"""The storage engine: blocks in slab files, an index that survives, and what a restart finds."""
