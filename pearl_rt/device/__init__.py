"""The state and the steps of a round on a device: tensors at fixed addresses, launches, captures.

Knows one lane at a time; not requests' texts, order or scheduling.
Low-level calls and back ends import it.
"""
