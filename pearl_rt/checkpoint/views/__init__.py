"""Drafts that are a view of their target: some of its layers, and perhaps one of their own behind these."""
