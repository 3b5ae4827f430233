"""Texts and chats as token ids, and back: the bodies of /tokenize and /detokenize, as vLLM has them."""
