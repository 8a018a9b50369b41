"""train.py's room: flags to a config, the loop, what a run leaves, how it resumes."""
