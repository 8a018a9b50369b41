"""For train.py: from flags to a config, the loop, what a run writes, how it resumes."""
