"""Text for training: files of a corpus, its tokenizer, its tokens, rows cut from them, held-out prompts."""
