"""The command line: generate, chat, serve and plan, and flags for engine options and sampling parameters.

Knows the engine's public API and the planner only.
`python -m pearl_rt` imports it; nothing else does.
"""
