"""A small encoder with three heads in Hugging Face's Trainer, by every method.

Sentences of sixteen words from a language of ten are made here. The encoder, a BERT of random
weights, is asked for the most frequent word of a sentence, for whether it ends with the word that
it begins with, and for each word whether it has occurred before. The losses are cross entropies: a
sum over the sentence for the words, which begins at about 11; the others begin at 2.3 and 0.7.

A scalarizer asks two things of a program with a Trainer: the model returns the losses, and
`MultiTaskTrainer` takes the place of `Trainer`.

    python examples/with_transformers.py --method UW           # 20 seconds on one core
    python examples/with_transformers.py --method UW --accumulate 4
    torchrun --nproc-per-node 2 examples/with_transformers.py --method UW
    python examples/with_transformers.py --method UW --resume runs/transformers/checkpoint-400
    python examples/with_transformers.py --quick

The first line prints, after the Trainer's own lines (2 cores of an AMD EPYC):

       most frequent same ends seen before
method       % right   % right     % right
──────────────────────────────────────────
UW              92.0     100.0        99.7

With `--method Sum` it is 90.6, 99.7 and 99.9, with `--method LogSum` 89.6, 100.0 and 98.6,
with `--method FAMO` 93.7, 100.0 and 98.5. FAMO looks again after every step, because one task is
solved early: with `--method FAMO --update-every 10` it is 69.5, 100.0 and 77.2.

Two processes, or steps in several parts, take the steps of one process on the whole batch, up to
rounding. A run resumed from a checkpoint is bit-identical to one that never stopped. The Trainer's
lines, which TensorBoard and the like are given as well, have the losses and the task weights.
"""

import argparse
import gc
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from digits import CONSOLE, TOO_SHORT, count, make_table, run_program, writable_directory
from digits import METHODS as METHODS_OF_DIGITS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mtl_scalarize import STCH, Constant, Scalarizer

try:
    from transformers import BertConfig, BertModel, EvalPrediction, TrainingArguments
except ImportError:
    sys.exit("with_transformers.py: error: needs transformers: pip install transformers")

from mtl_scalarize.integrations.transformers import MultiTaskTrainer

WORDS, LENGTH = 10, 16
SENTENCES = 5120  # to train on: 80 batches
BATCH_SIZE = 64
TASKS = ("most frequent", "same ends", "seen before")
# The inverse of how large each loss is before training.
INVERSE_SIZES = torch.tensor([1 / math.log(WORDS), 1 / math.log(2), 1 / (LENGTH * math.log(2))])

METHODS: dict[str, Callable[..., Scalarizer]] = METHODS_OF_DIGITS | {
    "Constant": lambda tasks: Constant(dict(zip(tasks, INVERSE_SIZES.tolist(), strict=True))),
    "STCH": lambda tasks: STCH(0.1, INVERSE_SIZES, shape=tasks),
}


def make_sentences(size: int, seed: int) -> list[dict[str, Tensor]]:
    """Sentences and their labels, as many as `size`."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(WORDS, (size, LENGTH), generator=generator)
    # Half of the sentences end as they begin.
    copied = torch.rand(size, generator=generator) < 0.5
    words[copied, -1] = words[copied, 0]
    same = (words[:, 0] == words[:, -1]).long()
    frequent = (
        nn.functional.one_hot(words, WORDS).sum(dim=1).argmax(dim=-1)
    )  # the first, if several
    earlier = torch.ones(LENGTH, LENGTH).tril(-1).bool()
    seen = ((words.unsqueeze(2) == words.unsqueeze(1)) & earlier).any(dim=2).long()
    columns = {
        "input_ids": words,
        "labels_frequent": frequent,
        "labels_same": same,
        "labels_seen": seen,
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class Reader(nn.Module):
    """An encoder that all tasks share, and a linear head for each."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.frequent = nn.Linear(64, WORDS)
        self.same = nn.Linear(64, 2)
        self.seen = nn.Linear(64, 2)

    def forward(
        self, input_ids: Tensor, labels_frequent: Tensor, labels_same: Tensor, labels_seen: Tensor
    ) -> dict[str, Tensor]:
        states = self.encoder(input_ids).last_hidden_state
        frequent, same = self.frequent(states.mean(dim=1)), self.same(states[:, 0])
        seen = self.seen(states)
        of_words = cross_entropy(seen.transpose(1, 2), labels_seen, reduction="none")
        losses = [
            cross_entropy(frequent, labels_frequent),
            cross_entropy(same, labels_same),
            of_words.sum(dim=1).mean(),
        ]
        # The Trainer evaluates what has another name than "losses".
        return {"losses": torch.stack(losses), "frequent": frequent, "same": same, "seen": seen}


def shares_right(found: EvalPrediction) -> dict[str, float]:
    pairs = zip(TASKS, found.predictions, found.label_ids, strict=True)
    return {task: 100 * (logits.argmax(-1) == labels).mean() for task, logits, labels in pairs}


def checkpoint_of(text: str) -> str:
    if not (Path(text) / "scalarizer.pt").is_file():
        raise argparse.ArgumentTypeError(f"no checkpoint of this program at {text!r}")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train three tasks with Hugging Face's Trainer.")
    parser.add_argument("--method", choices=METHODS, default="FAMO", help="default: FAMO")
    parser.add_argument("--quick", action="store_true", help="2 epochs")
    parser.add_argument("--epochs", type=count, help="default: 10")
    parser.add_argument(
        "--accumulate",
        type=int,
        choices=(1, 2, 4, 8),
        default=1,
        help="parts of a step; default: 1",
    )
    parser.add_argument(
        "--update-every",
        type=count,
        default=1,
        help="how often FAMO looks again; default: 1, for a task that is solved early",
    )
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--seed", type=count, default=1, help="default: 1")
    parser.add_argument(
        "--dir",
        type=writable_directory,
        default="runs/transformers",
        help="default: runs/transformers",
    )
    parser.add_argument("--resume", type=checkpoint_of, help="a checkpoint in that directory")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as in digits.py
    torch.manual_seed(args.seed)
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    settings = TrainingArguments(
        str(args.dir),
        num_train_epochs=args.epochs or (2 if args.quick else 10),
        per_device_train_batch_size=BATCH_SIZE // (ranks * args.accumulate),
        gradient_accumulation_steps=args.accumulate,
        learning_rate=1e-3,
        bf16=args.bf16,
        ddp_find_unused_parameters=False,
        seed=args.seed,
        logging_strategy="epoch",
        save_strategy="epoch",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = MultiTaskTrainer(
        Reader(),
        settings,
        train_dataset=make_sentences(SENTENCES, args.seed),
        eval_dataset=make_sentences(1000, args.seed + 1),
        compute_metrics=shares_right,
        scalarizer=METHODS[args.method](TASKS),
        update_every=args.update_every,
    )
    trainer.train(resume_from_checkpoint=args.resume)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        table = make_table("method", *(f"{task}\n% right" for task in TASKS))
        table.add_row(args.method, *(f"{metrics[f'eval_{task}']:.1f}" for task in TASKS))
        CONSOLE.print(table)
        if args.quick:
            print(TOO_SHORT)
    # The Trainer leaves the process group as it is, and its DDP model keeps it in a cycle: gloo's
    # threads could then abort the end of the program.
    accelerator = trainer.accelerator
    accelerator.free_memory()
    del trainer
    gc.collect()
    accelerator.end_training()


if __name__ == "__main__":
    run_program(main)
