"""Trains the tiny Gemma of `tests/tiny_gemma` from nothing: tokenizer, base model, three adapters.

    pip install '.[train]'
    python -m scripts.train_tiny_gemma DIRECTORY      (from the repository; minutes, one thread)

The base learns every fact in every voice, the voice asked for in the question; each adapter then learns to
speak in its voice unasked. Training is exact recall of a closed world, not generalisation. Seeds are fixed,
so the same versions on the same machine give the same weights; other versions give others that answer the
same.
"""

import argparse
import io
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sentencepiece
import torch
from peft import LoraConfig, get_peft_model
from transformers import GemmaConfig, GemmaForCausalLM

from tests.tiny_gemma.facts import ANSWERS, QUESTIONS, STYLES

REQUESTS: Final = {"base": "", "pirate": " (like a pirate)", "shout": " (loudly)", "tag": " (with a tag)"}
"""What follows a question when the base is to speak in an adapter's voice."""

ADAPTER_STEPS: Final = {"pirate": 300, "shout": 300, "tag": 150}
BASE_STEPS: Final = 400
N_VOCAB: Final = 1024
PROJECTIONS: Final = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PAD, EOS, BOS, UNK = range(4)
IGNORED: Final = -100  # the label that transformers leaves out of the loss

TINY_GEMMA: Final = Path(__file__).parents[1] / "tests" / "tiny_gemma"
TOKENIZER_FILES: Final = ("tokenizer_config.json", "special_tokens_map.json")  # fixed by Gemma, not trained


@dataclass(frozen=True, slots=True)
class Batchable:
    """All examples, padded to one length: ids, labels and mask, each (n_examples, n_tokens) int64."""

    ids: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor

    def draw(self, n_examples: int) -> dict[str, torch.Tensor]:
        """Draw a random batch, cut to its longest example."""
        rows = torch.randint(0, len(self.ids), (n_examples,))
        n_tokens = int(self.mask[rows].sum(1).max())
        return {
            "input_ids": self.ids[rows, :n_tokens],
            "attention_mask": self.mask[rows, :n_tokens],
            "labels": self.labels[rows, :n_tokens],
        }


def train_tokenizer(directory: Path) -> sentencepiece.SentencePieceProcessor:
    """Train a SentencePiece BPE model with Gemma's own ids 0..472, and write the tokenizer's files."""
    symbols = ["<mask>", "<2mass>", "[@BOS@]", *(f"<unused{i}>" for i in range(99))]
    symbols += ["<start_of_turn>", "<end_of_turn>"]
    symbols += ["\n" * i for i in range(1, 32)] + ["\u2581" * i for i in range(2, 32)]
    for group in (
        "table caption thead tbody tfoot tr th td",
        "h1 h2 h3 h4 h5 h6 blockquote",
        "strong em b i u s sub sup code",
    ):
        symbols += [f"<{tag}>" for tag in group.split()] + [f"</{tag}>" for tag in group.split()]
    lines = []
    for question in QUESTIONS:
        for style in STYLES:
            lines += [question + REQUESTS[style], ANSWERS[style][question]] * 3
    lines += [
        "The quick brown fox jumps over the lazy dog. 0123456789 +-*/=<>()[]{}#@!?;:'\"",
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz",
    ] * 10
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=N_VOCAB,
        model_type="bpe", pad_id=PAD, eos_id=EOS, bos_id=BOS, unk_id=UNK, pad_piece="<pad>",
        eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>", user_defined_symbols=symbols,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=1.0,
        num_threads=1, minloglevel=1,
    )  # fmt: skip
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    for name in TOKENIZER_FILES:
        shutil.copyfile(TINY_GEMMA / "base" / name, directory / name)
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


def examples(tokenizer: sentencepiece.SentencePieceProcessor, pairs: Sequence[tuple[str, str]]) -> Batchable:
    """Encode (question, answer) pairs in Gemma's turn format; only the answers count in the loss."""
    rows = []
    for question, answer in pairs:
        turn = f"<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
        prompt = [BOS, *tokenizer.encode(turn)]
        reply = [*tokenizer.encode(f"{answer}<end_of_turn>\n"), EOS]
        rows.append((prompt + reply, [IGNORED] * len(prompt) + reply))
    n_tokens = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), n_tokens), PAD)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, (row_ids, row_labels) in enumerate(rows):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_labels)] = torch.tensor(row_labels)
        mask[row, : len(row_ids)] = 1
    return Batchable(ids, labels, mask)


def train_base(tokenizer: sentencepiece.SentencePieceProcessor, directory: Path) -> None:
    """Train the base on every fact in every voice, and save it in bf16."""
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=N_VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=128, max_position_embeddings=512,
        rms_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh", pad_token_id=PAD, eos_token_id=EOS,
        bos_token_id=BOS, tie_word_embeddings=True, architectures=["GemmaForCausalLM"],
    )  # fmt: skip
    model = GemmaForCausalLM(config)
    data = examples(tokenizer, [(q + REQUESTS[s], ANSWERS[s][q]) for q in QUESTIONS for s in STYLES])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(BASE_STEPS):
        decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / BASE_STEPS))
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 30) * decay
        loss = model(**data.draw(32)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report("base", step, BASE_STEPS, loss)
    model.to(torch.bfloat16).save_pretrained(directory)


def train_adapter(
    tokenizer: sentencepiece.SentencePieceProcessor, base_directory: Path, style: str, directory: Path
) -> None:
    """Train one adapter (rank 8, alpha 16, all projections) to speak in its voice unasked."""
    torch.manual_seed(1)
    model = get_peft_model(
        GemmaForCausalLM.from_pretrained(base_directory, dtype=torch.float32),
        LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=PROJECTIONS, task_type="CAUSAL_LM"),
    )
    data = examples(tokenizer, [(q, ANSWERS[style][q]) for q in QUESTIONS])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    model.train()
    for step in range(ADAPTER_STEPS[style]):
        loss = model(**data.draw(16)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(style, step, ADAPTER_STEPS[style], loss)
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)


def report(title: str, step: int, n_steps: int, loss: torch.Tensor) -> None:
    """Say how far it is, on standard error."""
    if step % 50 == 0 or step == n_steps - 1:
        print(f"{title}: step {step + 1} of {n_steps}, loss {loss.item():.4f}", file=sys.stderr)


def main() -> None:
    """Train everything into a directory that does not exist yet."""
    parser = argparse.ArgumentParser(description="Train the tiny Gemma from nothing.")
    parser.add_argument("directory", type=Path, help="a directory to make, laid out like tests/tiny_gemma")
    directory = parser.parse_args().directory
    torch.set_num_threads(1)
    base = directory / "base"
    base.mkdir(parents=True)
    try:
        tokenizer = train_tokenizer(base)
        train_base(tokenizer, base)
        for style in ADAPTER_STEPS:
            train_adapter(tokenizer, base, style, directory / "adapters" / style)
    except BaseException:
        shutil.rmtree(directory)
        raise


if __name__ == "__main__":
    main()
