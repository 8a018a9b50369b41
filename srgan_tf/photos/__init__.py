"""For upscale.py: photographs in, photographs out."""
