"""Data sources and what they are read into; `load_data` is the entry."""
