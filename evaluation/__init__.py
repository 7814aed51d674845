"""How good is a version, and compared with another? Plain arrays in, figures out."""
