"""Bodies of /tokenize and /detokenize: a text, or a chat; token ids.

Knows fields; not tokenizers.
"""

from dataclasses import dataclass

from pearl_rt.serve.completion_request import CompletionRequest, read_chat
from pearl_rt.serve.fields import FieldError, Fields
from pearl_rt.types.values import token_ids

MAX_TOKENS = 2**17  # of one body: they are decoded at once, while others wait
_OWN = ("add_special_tokens", "return_token_strs")


@dataclass(frozen=True)
class TokenizeRequest:
    """What is to be encoded: a text, or else a chat.

    has_texts  each token's text is wanted too
    """

    model: str
    prompt: str | None
    chat: CompletionRequest | None
    add_special_tokens: bool
    has_texts: bool

    @classmethod
    def read(cls, body: object) -> "TokenizeRequest":
        """Raises FieldError."""
        fields = Fields(body)
        prompt, chat = fields.text("prompt"), None
        if (prompt is None) == ("messages" not in fields):
            raise FieldError("prompt", "pass prompt, a string, or messages: one of them")
        own = fields.boolean(_OWN[0], prompt is not None), fields.boolean(_OWN[1])
        if prompt is None:
            assert isinstance(body, dict)
            chat = read_chat({name: value for name, value in body.items() if name not in _OWN})
        model = fields.text("model") or ""
        if chat is None:
            fields.end()
        return cls(model, prompt, chat, *own)


def read_tokens(body: object) -> tuple[str, list[int]]:
    """(model, ids) of a body of /detokenize. Raises FieldError or RequestError."""
    fields = Fields(body)
    model, tokens = fields.text("model") or "", fields.any("tokens")
    fields.end()
    if not isinstance(tokens, list) or len(tokens) > MAX_TOKENS:
        raise FieldError("tokens", f"tokens must be an array of token ids, {MAX_TOKENS} at most")
    return model, list(token_ids("tokens", tokens))
