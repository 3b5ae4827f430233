"""Benchmarks. The commands stand here; what they share is below them.

harness      runs programs, compares tokens, then times; knows no models
model_pairs  what is measured: shapes, planted weights, prompts, engines
rounds       what a trace says of a run's rounds
kernel_cases operators with their bytes, references and peers
"""
