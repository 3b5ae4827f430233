"""Which program runs: strategies as data, candidates, measured step times, the choice of `auto`.

Knows no device: programs are lists of steps, times are figures.
Back ends, scheduling and the engine import it.
"""
