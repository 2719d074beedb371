"""A small character transformer on the source text of Python's own standard library."""

import argparse
import math
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Text(Dataset):
    """Overlapping stretches of a text, as bytes."""

    def __init__(self, text: bytes, context: int) -> None:
        self.data = torch.tensor(list(text), dtype=torch.long)
        self.context = context

    def __len__(self) -> int:
        return (len(self.data) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = index * self.context
        stretch = self.data[start : start + self.context + 1]
        return stretch[:-1], stretch[1:]


class CharTransformer(nn.Module):
    def __init__(self, context: int, width: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, width)
        self.positions = nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.tokens(tokens) + self.positions(torch.arange(length))
        return self.head(self.blocks(hidden, mask=mask, is_causal=True))


def library_text(limit: int) -> bytes:
    """The first `limit` bytes of the standard library's modules, in the order of their names."""
    folder = Path(math.__spec__.origin or "").parent
    if not list(folder.glob("*.py")):
        folder = Path(argparse.__file__).parent
    text = b""
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit:
            break
    return text[:limit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--context", type=int, default=96)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    args = parser.parse_args()

    torch.manual_seed(0)
    loader = DataLoader(
        Text(library_text(400_000), args.context), args.batch_size, shuffle=True, drop_last=True
    )
    model = CharTransformer(args.context, args.width, args.layers)
    run = torch.compile(model, backend=args.backend) if args.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    updates = batches = 0
    while updates < args.updates:
        for tokens, targets in loader:
            loss = criterion(run(tokens).flatten(0, 1), targets.flatten())
            (loss / args.accumulate).backward()
            batches += 1
            if batches % args.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                updates += 1
                if updates % 10 == 0:
                    print(f"update {updates}: loss {loss.item():.3f}")
                if updates == args.updates:
                    break
    print(f"{updates} updates")


if __name__ == "__main__":
    main()
