"""The text of an answer, divided as it grows: reasoning, calls of functions, and text that is shown.

Parsers read character by character: how the text was divided into chunks changes nothing.
A parser has a file; the forms are chosen by a checkpoint's template.
Knows text and JSON; not engines, and not HTTP.
"""
