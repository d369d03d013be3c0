"""Train a classifier of handwritten digits from one registry, twice, with equal results.

Everything random comes from ``SeedRegistry(seed)``: the split, the weights, the order of the
batches and the dropout of each step. The ledger says what was derived and built. Its digest and the
weights of the second training must be those of the first, bit for bit. The data are the 1,797
images of 8 x 8 pixels that come with scikit-learn, so nothing is downloaded. The ledger, a table
for a paper and a statement in words are left in a folder.

    python docs/examples/digits.py --seed 42 --epochs 20 --out out
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from seedregistry import Ledger, SeedRegistry
from seedregistry.ledger import Verification, verify_file

BATCH_SIZE = 64
BAR_WIDTH = 30


class Result(NamedTuple):
    """What one training leaves behind.

    Attributes:
        registry: what everything was derived from and built with.
        model: the trained model.
        accuracy: the fraction of the test images that the model gets right.
    """

    registry: SeedRegistry
    model: nn.Module
    accuracy: float


class Progress:
    """One line an epoch; on a terminal also a bar that fills while the epoch runs."""

    def __init__(self, title: str, epochs: int, steps: int) -> None:
        self.title = title
        self.epochs = epochs
        self.steps = steps
        self.is_terminal = sys.stdout.isatty()

    def step(self, epoch: int, step: int) -> None:
        """Show that a step is done."""
        if self.is_terminal:
            filled = BAR_WIDTH * (step + 1) // self.steps
            bar = "#" * filled + "." * (BAR_WIDTH - filled)
            print(
                f"\r{self.title}  epoch {epoch + 1:2d}/{self.epochs}  [{bar}]", end="", flush=True
            )

    def epoch(self, epoch: int, loss: float, seconds: float) -> None:
        """Show that an epoch is done."""
        start = "\r\033[K" if self.is_terminal else ""
        line = f"{self.title}  epoch {epoch + 1:2d}/{self.epochs}  loss {loss:.4f}  {seconds:.2f} s"
        print(f"{start}{line}", flush=True)


def load_dataset() -> TensorDataset:
    """Return the images as rows of 64 float32 in 0 to 1, and their labels."""
    digits = load_digits()
    images = torch.from_numpy(digits.data).to(torch.float32) / 16
    return TensorDataset(images, torch.from_numpy(digits.target).to(torch.int64))


def build_model(hidden: int) -> nn.Module:
    """Return a perceptron with one hidden layer and dropout."""
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 10))


def measure_accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the fraction of the images that the model gets right."""
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(dim=1) == labels).to(torch.float64).mean().item()


def train(seed: int, epochs: int, title: str) -> Result:
    """Train once.

    Everything that is drawn comes from the registry. The audit would raise if something did not.
    """
    registry = SeedRegistry(seed)
    registry.note(epochs=epochs, batch_size=BATCH_SIZE)
    training, test = registry.split(load_dataset(), [1500, 297], instance_id="digits")

    loader = registry.dataloader(
        training, instance_id="training", batch_size=BATCH_SIZE, shuffle=True
    )
    model = registry.model(build_model, 128, instance_id="training")
    optimizer = registry.optimizer(
        torch.optim.AdamW, model.parameters(), instance_id="training", lr=1e-3
    )
    scheduler = registry.scheduler(
        "OneCycleLR",
        optimizer,
        instance_id="training",
        max_lr=1e-2,
        total_steps=epochs * len(loader),
    )
    dropout = registry.stream("dropout", "training")

    progress = Progress(title, epochs, len(loader))
    with registry.audit():
        for epoch in range(epochs):
            start, total = time.perf_counter(), 0.0
            for step, (images, labels) in loader.steps(epoch):
                with dropout.scope(epoch, step):  # this step's dropout: a function of its position
                    loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += loss.item()
                progress.step(epoch, step)
            progress.epoch(epoch, total / len(loader), time.perf_counter() - start)

    test_images, test_labels = (torch.stack(column) for column in zip(*test))
    return Result(registry, model, measure_accuracy(model, test_images, test_labels))


def is_equal(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two models have the same parameters and buffers, bit for bit."""
    here, there = first.state_dict(), second.state_dict()
    return here.keys() == there.keys() and all(
        torch.equal(here[name], there[name]) for name in here
    )


def write_ledger(ledger: Ledger, folder: Path) -> Verification:
    """Save a ledger and what a paper needs of it.

    The file is then verified as a reader of the paper would do it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ledger.save(folder / "ledger.jsonl")
    (folder / "ledger.tex").write_text(ledger.to_latex(), encoding="utf-8")
    (folder / "statement.txt").write_text(ledger.statement() + "\n", encoding="utf-8")
    report = verify_file(folder / "ledger.jsonl")
    print(f"{folder / 'ledger.jsonl'}: {report}\n\n{ledger.statement()}\n")
    return report


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description="Train on digits from one registry, twice, and compare."
    )
    parser.add_argument("--seed", type=int, default=42, help="master seed (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, default=20, help="epochs of each training (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder to write to (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    return arguments


def main() -> int:
    """Train, write the ledger, train again and compare; return the exit status."""
    arguments = parse_arguments()
    # A model this small gains nothing from more threads, and sums depend on how many there are.
    torch.set_num_threads(1)

    first = train(arguments.seed, arguments.epochs, "first training ")
    print(f"test accuracy {first.accuracy:.4f}\n\n{first.registry.ledger}\n")

    report = write_ledger(first.registry.ledger, arguments.out)

    second = train(arguments.seed, arguments.epochs, "second training")
    has_same_digest = second.registry.ledger.digest == first.registry.ledger.digest
    has_same_weights = is_equal(first.model, second.model)
    print(f"\ndigest of the second ledger: {'equal' if has_same_digest else 'DIFFERENT'}")
    print(
        f"weights of the second model: {'equal, bit for bit' if has_same_weights else 'DIFFERENT'}"
    )
    difference = first.registry.ledger.diff(second.registry.ledger)
    if difference:
        print(difference)
    return 0 if report and has_same_digest and has_same_weights else 1


if __name__ == "__main__":
    sys.exit(main())
