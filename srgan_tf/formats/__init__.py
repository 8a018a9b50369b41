"""For export.py: each file format is one module that writes and reads it."""
