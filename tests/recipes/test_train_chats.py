"""A chat model writes conversations, one file each, and goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_pairs import TINY, byte_tokenizer, random_tensors

from pearl_rt import Engine
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import RequestError
from recipes.train.data.chats import ABOUT_A_PASSAGE, turn_marks, write_chats

TEMPLATE = ChatTemplate(
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_marks_of_a_turn() -> None:
    assert turn_marks(TEMPLATE) == ("<user>", "</><assistant>")
    with pytest.raises(RequestError, match="does not write the user's text as it is"):
        turn_marks(ChatTemplate("{% for m in messages %}{{ m.content | upper | length }}{% endfor %}"))


def test_conversations_are_files(tmp_path: Path) -> None:
    told: list[int] = []
    settings = {"question_tokens": 9, "answer_tokens": 7, "told": told.append}
    with Engine(
        TINY,
        random_tensors(TINY, 0),
        tokenizer=Tokenizer(byte_tokenizer(), vocab_size=TINY.vocab_size),
        max_model_len=512,
    ) as engine:
        tokens = write_chats(engine, TEMPLATE, tmp_path, 5, **settings)
        files = sorted(path.name for path in tmp_path.iterdir())
        assert files == [f"chat-0000{n}.txt" for n in range(5)] and 0 < tokens <= 35
        texts = [(tmp_path / name).read_text() for name in files]
        assert all(text.startswith("<user>") and "</><assistant>" in text for text in texts)
        assert len(set(texts)) == 5
        (tmp_path / files[1]).unlink()
        before = (tmp_path / files[0]).stat().st_mtime_ns
        write_chats(engine, TEMPLATE, tmp_path, 5, **settings)
        assert (tmp_path / files[0]).stat().st_mtime_ns == before
        assert (tmp_path / files[1]).read_text() == texts[1]
        write_chats(engine, TEMPLATE, tmp_path, 70, **settings)  # behind the first ones passages are known
    about = [
        path
        for path in tmp_path.iterdir()
        if path.read_text().startswith(tuple("<user>" + form.removesuffix("{}") for form in ABOUT_A_PASSAGE))
    ]
    assert told == [5, 1, 59, 6]
    assert about and all(int(path.stem[5:]) >= 64 and int(path.stem[5:]) % 3 == 2 for path in about)
