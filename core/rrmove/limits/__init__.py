"""Limits: how fast moves may send: buckets, level moves, and limits shared by moves and processes."""
