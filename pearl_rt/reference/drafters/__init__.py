"""The definitions of what drafts: lookup, a chain of lookup and model, EAGLE-3 heads, diffusion drafts."""
