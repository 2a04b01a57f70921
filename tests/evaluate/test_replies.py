"""What two models say to a prompt, against forward passes without a cache."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.messages import raises_saying
from support.worse_models import Pair

from ders_core.errors import Cancelled, CheckpointError, EvaluationError
from ders_core.evaluate import Replies, compare_replies
from ders_core.evaluate.speaking import Draw
from ders_core.hf import load_model
from ders_core.pipeline.compress import compress
from ders_core.recipe import presets

PROMPT = "The river runs"
TOKENS = 24


def ask(pair: Pair, prompt: str = PROMPT, **options: Any) -> Replies:
    sizes: dict[str, Any] = {"max_tokens": TOKENS, "dtype": torch.float32}
    return compare_replies(pair.packed, pair.original, prompt, **(sizes | options))


@pytest.fixture(scope="module")
def replies(pair: Pair) -> Replies:
    return ask(pair)


@pytest.fixture(scope="module")
def networks(pair: Pair) -> tuple[Any, Any]:
    return tuple(load_model(path, dtype=torch.float32) for path in (pair.original, pair.packed))


def log_probs(network: Any, tokens: list[int]) -> torch.Tensor:
    """float64 `[tokens, vocabulary]`: of the token after each, from one pass."""
    with torch.inference_mode():
        logits: torch.Tensor = network(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits.double().log_softmax(-1)


def greedy(network: Any, tokens: list[int], most: int) -> list[int]:
    """A reply, one whole pass a token, until `</s>`."""
    said: list[int] = []
    while len(said) < most and said[-1:] != [1]:
        said.append(int(log_probs(network, tokens + said)[-1].argmax()))
    return said


def test_both_say_what_they_hold_most_likely(
    replies: Replies, networks: tuple[Any, Any], tokenizer: Any
) -> None:
    prompt = tokenizer(PROMPT)["input_ids"]
    said = [greedy(network, prompt, TOKENS) for network in networks]
    assert said[0] != said[1], "a pair that says the same would show nothing"
    for reply, tokens in zip((replies.original, replies.compressed), said, strict=True):
        assert reply.text == tokenizer.decode(tokens)
        assert len(reply.tokens) == len(tokens)
        assert reply.ended == (tokens[-1] == 1)
    pairs = enumerate(zip(*said, strict=False))
    assert replies.same == next(place for place, (one, other) in pairs if one != other)
    assert (replies.prompt, replies.prompt_tokens) == (PROMPT, len(prompt))


def test_marks_and_probabilities_are_those_of_the_same_context(
    replies: Replies, networks: tuple[Any, Any], tokenizer: Any
) -> None:
    prompt = tokenizer(PROMPT)["input_ids"]
    marked = 0
    for who, reply in enumerate((replies.original, replies.compressed)):
        tokens = greedy(networks[who], prompt, TOKENS)
        begin = len(prompt) - 1
        of_each = [log_probs(net, prompt + tokens)[begin:-1] for net in networks]
        kl = (of_each[0].exp() * (of_each[0] - of_each[1])).sum(-1)
        own, other = of_each[who], of_each[1 - who]
        for place, token in enumerate(reply.tokens):
            choice = int(other[place].argmax())
            assert (token.other is not None) == (choice != tokens[place])
            if token.other is not None:
                marked += 1
                assert token.other == tokenizer.decode([choice])
            assert token.chance == pytest.approx(math.exp(own[place, tokens[place]]), rel=1e-3)
            assert token.other_chance == pytest.approx(
                math.exp(other[place, tokens[place]]), rel=1e-3
            )
            assert token.kl == pytest.approx(float(kl[place]), rel=1e-3, abs=1e-6)
        assert reply.kl == pytest.approx(float(kl.mean()), rel=1e-3)
    assert marked == replies.original.differences + replies.compressed.differences > 0


def test_where_the_replies_part_both_are_marked(replies: Replies) -> None:
    for reply in (replies.original, replies.compressed):
        first = next(n for n, token in enumerate(reply.tokens) if token.other is not None)
        assert first == replies.same
    part = replies.original.tokens[replies.same], replies.compressed.tokens[replies.same]
    assert (part[0].other, part[1].other) == (part[1].text, part[0].text)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_lossless_form_says_the_same(pair: Pair, tmp_path: Path, temperature: float) -> None:
    compress(pair.original, tmp_path / "lossless", presets()["lossless"])
    same = Pair(pair.original, tmp_path / "lossless")
    replies = ask(same, temperature=temperature, seed=5, dtype=None)
    assert replies.are_same
    assert replies.original == replies.compressed
    assert replies.original.kl == 0
    assert replies.original.differences == 0
    assert "Both say the same" in replies.sentence


def test_chance_is_shared_and_repeats(
    pair: Pair, networks: tuple[Any, Any], tokenizer: Any
) -> None:
    replies = ask(pair, temperature=1.0, seed=3)
    again = ask(pair, temperature=1.0, seed=3)
    assert again.original == replies.original
    assert again.compressed == replies.compressed
    assert ask(pair, temperature=1.0, seed=4).original.text != replies.original.text
    prompt: list[int] = tokenizer(PROMPT)["input_ids"]
    said: list[int] = []
    for place in range(len(replies.original.tokens)):
        noise = np.random.default_rng((3, place)).gumbel(size=tokenizer.vocab_size)
        said.append(int((log_probs(networks[0], prompt + said)[-1].numpy() + noise).argmax()))
    assert replies.original.text == tokenizer.decode(said)


def test_a_draw_has_the_probabilities_that_are_asked_for() -> None:
    """20 000 places of one prediction, at temperature 0.5: p² normalised."""
    chances = np.array([0.5, 0.3, 0.2])
    draw = Draw(0.5, seed=1)
    of_one = torch.from_numpy(np.log(chances)).float()
    drawn = np.bincount([draw.token(of_one, place) for place in range(20_000)], minlength=3)
    expected = chances**2 / (chances**2).sum()
    assert np.abs(drawn / 20_000 - expected).max() < 4 * math.sqrt(0.25 / 20_000)


def test_settings_that_come_with_a_model_do_not_count(pair: Pair, tmp_path: Path) -> None:
    """A checkpoint may ask for sampling and for penalties; a greedy reply has none."""
    eager = Pair(shutil.copytree(pair.original, tmp_path / "eager"), pair.packed)
    file = eager.original / "generation_config.json"
    settings: dict[str, Any] = {
        "do_sample": True,
        "temperature": 1.7,
        "repetition_penalty": 3.0,
        "top_k": 5,
    }
    settings |= {"max_length": 3, "min_new_tokens": 40, "suppress_tokens": [20]}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    assert ask(eager).original == ask(pair).original


def test_a_chat_is_written_by_the_template(pair: Pair, tmp_path: Path) -> None:
    with raises_saying(EvaluationError, "chat template", str(pair.original)):
        ask(pair, chat=True)
    paths = [shutil.copytree(path, tmp_path / path.name) for path in (pair.original, pair.packed)]
    for path in paths:
        (path / "chat_template.jinja").write_text(
            "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}"
        )
    replies = ask(Pair(*paths), chat=True)
    assert replies.prompt == f"<s>user: {PROMPT}\nassistant:"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": " \n"}, ["prompt is empty"]),
        ({"max_tokens": 0}, ["max_tokens is 0"]),
        ({"max_tokens": 2000}, ["max_tokens is 2000"]),
        ({"temperature": -1.0}, ["temperature is -1"]),
        ({"temperature": math.nan}, ["temperature is nan"]),
        ({"seed": -1}, ["seed is -1"]),
        ({"prompt": "river " * 400}, ["at most 512", "shorten the prompt"]),
    ],
)
def test_what_cannot_be_asked(pair: Pair, options: dict[str, Any], words: list[str]) -> None:
    with raises_saying(EvaluationError, *words):
        ask(pair, **options)


def test_a_model_without_a_tokenizer_is_named(pair: Pair, tmp_path: Path) -> None:
    mute = shutil.copytree(pair.packed, tmp_path / "mute")
    for file in mute.glob("*token*"):
        file.unlink()
    with raises_saying(CheckpointError, str(mute), "no tokenizer"):
        ask(Pair(pair.original, mute))


def test_models_of_other_tokens_are_refused(pair: Pair, tmp_path: Path) -> None:
    other = shutil.copytree(pair.packed, tmp_path / "other")
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = []
    file.write_text(json.dumps(content))
    with raises_saying(EvaluationError, str(other), "other tokens"):
        ask(Pair(pair.original, other))


def test_values_that_are_not_finite_are_an_error(
    pair: Pair, tmp_path: Path, damaged: Callable[[Path, Path], Path]
) -> None:
    with raises_saying(EvaluationError, "not finite"):
        ask(Pair(damaged(pair.original, tmp_path / "nan"), pair.packed))


def test_progress_counts_tokens_and_stops_the_work(pair: Pair) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int, message: str) -> None:
        seen.append((done, total))
        if done == 5:
            raise Cancelled("enough")

    with raises_saying(Cancelled, "enough"):
        ask(pair, progress=progress)
    assert seen[-1] == (5, 4 * TOKENS)


@pytest.fixture
def damaged() -> Callable[[Path, Path], Path]:
    """Copies a checkpoint, with a weight of its head that is not a number."""
    from safetensors.torch import load_file, save_file

    def copy(source: Path, target: Path) -> Path:
        shutil.copytree(source, target)
        tensors = load_file(target / "model.safetensors")
        tensors["lm_head.weight"][3, 0] = torch.nan
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return target

    return copy
