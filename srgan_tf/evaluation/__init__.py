"""evaluate.py's room: sets, scoring, tables, the report."""
