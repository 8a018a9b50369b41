"""export.py's room: each file format is one module that writes and reads it."""
