"""Text to token ids and back, by a checkpoint's tokenizer; and text as it grows, for streaming.

Knows the `tokenizers` library and nothing about models, except that a model may have more rows than there are
tokens (a padded vocabulary): such ids are legal and stand for no text.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from pearl_rt.checkpoint.config import check_file, model_directory, read_json
from pearl_rt.checkpoint.gguf.model import GgufModel
from pearl_rt.checkpoint.gguf.vocabulary import read_vocabulary
from pearl_rt.errors import CheckpointError, ConfigError, PromptTooLongError, RequestError, one_line, shown
from pearl_rt.types.json import Json

_REPLACEMENT = "\ufffd"  # what bytes that are no UTF-8, or not yet, decode to
_CONTEXT = 16  # tokens of the prompt that the first generated token is decoded with
_HELD = 16  # tokens after which bytes are taken for invalid rather than for unfinished


class Tokenizer:
    """A tokenizer, with the beginning-of-text token that it, or the settings beside it, ask for."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, vocab_size: int = 0, bos_token_id: int | None = None
    ) -> None:
        """`vocab_size`: rows of the model, if more than tokens; `bos_token_id`: put first unless it is."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.vocab_size = max(tokenizer.get_vocab_size(with_added_tokens=True), vocab_size)
        added = tokenizer.get_added_tokens_decoder()
        self.hidden = {i: token.content for i, token in added.items() if token.special}  # no text; by names
        self._shown = frozenset(tokenizer.get_vocab(with_added_tokens=True).values()) - self.hidden.keys()
        self._added = added.keys()
        self._bytes_of, self._spaces = _spelling(tokenizer)
        self._longest = max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1)  # characters
        probe = tokenizer.encode("a").ids
        self._prefix = [bos_token_id] if bos_token_id is not None and probe[:1] != [bos_token_id] else []

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads tokenizer.json, or the vocabulary of a GGUF file. Raises CheckpointError if it is missing or
        damaged, ConfigError for a kind that is not supported.
        """
        if (gguf := GgufModel.open(path)) is not None:
            vocabulary = read_vocabulary(gguf)
            found = cls(
                vocabulary.tokenizer, vocab_size=gguf.vocab_size, bos_token_id=vocabulary.bos_token_id
            )
            return found.hiding(gguf.end_ids())
        directory = model_directory(path)
        file = directory / "tokenizer.json"
        if not file.exists():
            if (directory / "tokenizer.model").exists():
                raise CheckpointError(
                    f"{directory} has only tokenizer.model (SentencePiece), which is not read: write "
                    "tokenizer.json with transformers, "
                    "AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
                )
            raise CheckpointError(
                f"{directory} has no tokenizer.json: fetch it, or give prompts as token ids"
            )
        check_file(file)
        try:
            return cls._from_file(file, read_json(directory / "config.json").get("vocab_size"))
        except CheckpointError:
            raise
        except BaseException as error:  # the library raises no narrower type
            _check_refusal(error)
            raise CheckpointError(
                f"{file} is not a readable tokenizer ({one_line(error)}): fetch it again"
            ) from error

    @classmethod
    def _from_file(cls, file: Path, rows: object) -> "Tokenizer":
        """With the settings beside it. rows: of the model, as config.json has them."""
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
        file_of_settings = file.parent / "tokenizer_config.json"
        settings = read_json(file_of_settings) if file_of_settings.exists() else {}
        _add_listed(tokenizer, settings)
        bos = _named(settings, "bos_token") if settings.get("add_bos_token") else None
        bos_token_id = None if bos is None else tokenizer.token_to_id(bos)
        if bos is not None and bos_token_id is None:
            raise CheckpointError(
                f"{file_of_settings} asks for the first token {shown(bos)}, which {file.name} does not have"
            )
        whole = cls(tokenizer, vocab_size=rows if isinstance(rows, int) else 0, bos_token_id=bos_token_id)
        eos = _named(settings, "eos_token")
        eos_token_id = None if eos is None else tokenizer.token_to_id(eos)
        return whole if eos_token_id is None else whole.hiding([eos_token_id])

    def hiding(self, token_ids: Collection[int]) -> "Tokenizer":
        """The same tokenizer, for which these ids, a model's ends of text, stand for no text either."""
        more = {i: self.token_text(i) for i in token_ids if i in self._shown}
        if not more:
            return self
        other = copy.copy(self)
        other.hidden, other._shown = self.hidden | more, self._shown - more.keys()
        return other

    @cached_property
    def showing_all(self) -> "Tokenizer":
        """The same tokenizer, for which special tokens stand for their names."""
        other = copy.copy(self)
        other.hidden, other._shown = {}, self._shown | self.hidden.keys()
        return other

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, beginning-of-text token first. Raises RequestError for what is not text.

        A chat template writes its special tokens itself: encode what it rendered without adding any.
        """
        try:
            # Of a batch, because the other call keeps all threads of Python waiting.
            [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return self._prefix + encoding.ids if add_special_tokens else encoding.ids
        except BaseException as error:
            _check_refusal(error)
            raise RequestError(f"prompt {shown(text)} cannot be encoded: {one_line(error)}") from error

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens. Raises RequestError as encode()."""
        try:
            return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        except BaseException as error:
            _check_refusal(error)
            raise RequestError(f"{len(texts)} texts cannot be encoded: {one_line(error)}") from error

    def spelled(self) -> dict[int, bytes]:
        """The bytes of each token that stands for text."""
        return {token_id: self.token_bytes(token_id) for token_id in sorted(self._shown)}

    def check_length(self, text: str, max_tokens: int) -> None:
        """Raises PromptTooLongError for a text that has over max_tokens of the longest token: that is known
        before it is encoded, which takes seconds for megabytes.
        """
        if len(text) > max_tokens * self._longest:
            raise PromptTooLongError(
                f"the prompt has {len(text)} characters, more than {max_tokens} tokens of {self._longest} "
                "can be: shorten it, or build the engine with a larger max_model_len"
            )

    def decode(self, token_ids: Sequence[int], *, after: Sequence[int] = ()) -> str:
        """Text of `token_ids`, special tokens left out.

        SentencePiece tokenizers drop the space that a text begins with; `after`, the ids that come before (a
        prompt), keeps it where it belongs. Raises RequestError for an id that is out of range.
        """
        if not after:
            return self._decoded(self._visible(token_ids))
        decoder = self.decoder(after=after)
        return decoder.push(token_ids) + decoder.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text: its own also where it is a part of a character, or begins
        with a space. Special tokens have their names; an id without a token has none.
        """
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added:
            return token.encode()
        if self._bytes_of is not None:
            own = [self._bytes_of.get(character) for character in token]
            return token.encode() if None in own else bytes(byte for byte in own if byte is not None)
        if self._spaces is None:
            return self._decoded([token_id]).encode()
        if byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", token):
            return bytes.fromhex(byte[1])
        return token.replace(self._spaces, " ").encode()

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, special tokens by their names; U+FFFD for parts of characters."""
        return self.token_bytes(token_id).decode(errors="replace")

    def decoder(self, *, after: Sequence[int] = ()) -> "IncrementalDecoder":
        """A decoder for text that continues `after`."""
        return IncrementalDecoder(self, after)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, equal for two tokenizers if, and only if, every id stands for the same token."""
        digest = hashlib.sha256()
        for token_id, token in sorted(self._tokens().items()):
            digest.update(f"{token_id}\t{token!r}\n".encode())
        return digest.hexdigest()

    def difference(self, draft: "Tokenizer") -> str | None:
        """Of a draft's tokenizer, with the first id that differs; None where a draft with it fits. Special
        tokens may have other names, and one side more of them: the target judges every token.
        """
        if self.fingerprint == draft.fingerprint:
            return None
        mine, theirs = self._tokens(), draft._tokens()
        plain = {i for side in (self, draft) for i in side._tokens().keys() - side.hidden.keys()}
        differing = sorted(i for i in plain if mine.get(i) != theirs.get(i))
        if not differing:
            return None
        first = differing[0]
        return (
            f"the draft's tokenizer differs from the target's in {len(differing)} of {len(mine)} ids, first "
            f"in {first}: {mine.get(first)!r} for the target, {theirs.get(first)!r} for the draft"
        )

    def check_draft(self, draft: "Tokenizer") -> None:
        """Raises ConfigError unless a draft with that tokenizer fits as it is."""
        if (differs := self.difference(draft)) is not None:
            raise ConfigError(
                f"{differs}. Take a draft of the target's family, or distil one: `python -m recipes.train`, "
                "in a checkout"
            )

    def _decoded(self, token_ids: Sequence[int]) -> str:
        """Raises RequestError for what the library cannot decode."""
        try:
            return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))
        except BaseException as error:
            _check_refusal(error)
            raise RequestError(
                f"the tokenizer cannot decode ids {shown(list(token_ids))}: {one_line(error)}"
            ) from error

    def _tokens(self) -> dict[int, str]:
        return {i: token for token, i in self._tokenizer.get_vocab(with_added_tokens=True).items()}

    def _visible(self, token_ids: Iterable[int]) -> list[int]:
        """The ids that stand for text. Raises RequestError for one that is out of range."""
        visible = []
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise RequestError(
                    f"token id {token_id} is out of range: the vocabulary has {self.vocab_size} ids"
                )
            if token_id in self._shown:
                visible.append(int(token_id))
        return visible


class IncrementalDecoder:
    """Text of a growing sequence, in pieces of whole characters; work per token does not grow with the text.

    A token's text can depend on the token before it, so a window of the last tokens is decoded with and
    without the new ones, and the difference is what they add. What ends in the middle of a character waits
    for its end.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = tokenizer._visible(after[-_CONTEXT:])
        self._settled = len(self._window)  # of the window's tokens, those that are out in full
        self._given = len(self._text().rstrip(_REPLACEMENT))  # characters of the window's text that are out

    def push(self, token_ids: Sequence[int]) -> str:
        """The whole characters that `token_ids` add; "" while a character is unfinished.

        Taken one by one, so that the text does not depend on how the tokens were divided into rounds.
        """
        return "".join([self._push(token_id) for token_id in self._tokenizer._visible(token_ids)])

    def _push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._text()
        is_stuck = len(self._window) - self._settled > _HELD
        whole = text if is_stuck else text.rstrip(_REPLACEMENT)
        piece = whole[self._given :]
        self._given = max(self._given, len(whole))
        if len(whole) == len(text):
            self._window = self._window[self._settled :]
            self._settled = len(self._window)
            self._given = len(self._text())
        return piece

    def finish(self) -> str:
        """What is still held back; bytes that complete no character are shown as U+FFFD."""
        piece = self._text()[self._given :]
        self._given += len(piece)
        return piece

    def _text(self) -> str:
        return self._tokenizer._decoded(self._window)


def _add_listed(tokenizer: tokenizers.Tokenizer, settings: Json) -> None:
    """Adds the tokens that only tokenizer_config.json names, as transformers does."""
    listed = settings.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return
    for _, entry in sorted(listed.items(), key=lambda item: (len(item[0]), item[0])):
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or tokenizer.token_to_id(content) is not None:
            continue
        names = ("single_word", "lstrip", "rstrip", "normalized", "special")
        flags = {name: bool(entry[name]) for name in names if name in entry}
        add = tokenizer.add_special_tokens if flags.get("special") else tokenizer.add_tokens
        add([tokenizers.AddedToken(content, **flags)])


def _check_refusal(error: BaseException) -> None:
    """Raises again what is no refusal of the library: Ctrl-C, for one. Its panics are no Exception."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _spelling(tokenizer: tokenizers.Tokenizer) -> tuple[Mapping[str, int] | None, str | None]:
    """How tokens stand for bytes: by one character each (byte-level vocabularies: the byte of each), or as
    text with a character for spaces and <0x0A> for bytes (SentencePiece). Neither: as the decoder says.
    """
    decoder: Json = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    steps = decoder.get("decoders", [decoder])
    if any(step.get("type") == "ByteLevel" for step in steps):
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        shown = {character: ord(character) for character in alphabet if ord(character) < 256}
        rest = sorted(set(range(256)) - set(shown.values()))
        return shown | {chr(256 + place): byte for place, byte in enumerate(rest)}, None
    for step in steps:
        if step.get("type") == "Metaspace":
            return None, step["replacement"]
        if step.get("type") == "Replace" and step.get("content") == " " and "String" in step["pattern"]:
            return None, step["pattern"]["String"]
    return None, None


def _named(settings: Json, name: str) -> str | None:
    """A token that a tokenizer_config.json names, if it does."""
    token = settings.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(token, str):
        raise CheckpointError(
            f"{name} of tokenizer_config.json is {shown(token)}, not text: fetch the file again"
        )
    return token
