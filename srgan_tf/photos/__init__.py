"""upscale.py's room: photographs in, photographs out."""
