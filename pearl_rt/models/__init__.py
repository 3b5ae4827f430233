"""Model definitions in torch, and the rotary tables that every backend shares."""
