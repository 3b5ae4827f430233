"""An OpenAI-compatible server over one engine. Needs the extra `serve`; `python -m pearl_rt serve` starts
it.
"""
