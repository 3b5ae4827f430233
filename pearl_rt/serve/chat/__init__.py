"""A chat as clients send it: tools and how to call them, the order of messages, the shape of answers.

Knows the fields of OpenAI's API, and parsers by their parts; not engines, and not HTTP.
"""
