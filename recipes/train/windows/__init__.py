"""Drafts that fill windows of mask tokens in several passes."""
