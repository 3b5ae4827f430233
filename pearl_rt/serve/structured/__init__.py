"""Fields of a body that say what form an answer must have, by OpenAI's names and by vLLM's.

Knows fields and StructuredOutputsParams; not grammars: whether a form can be compiled is the engine's to say.
A folder of its own for what grows with the names that clients use.
"""
