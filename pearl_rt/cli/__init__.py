"""The command line: generate, chat and serve, and flags for engine options and sampling parameters.

Knows the engine's public API only.
`python -m pearl_rt` imports it; nothing else does.
"""
