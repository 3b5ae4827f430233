"""OpenAI's responses: bodies of /v1/responses read as chats, and answers as items and events.

Nothing is stored: a client sends what was said before. Knows chats; not engines, and not HTTP.
"""
