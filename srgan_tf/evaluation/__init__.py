"""For evaluate.py: sets, scoring, tables, the report."""
