"""The model of `train_throughput.py` in PyTorch: torch.compile, autocast, fused AdamW.

Run by it as `python torch_reference.py DTYPE RESIDUAL_DTYPE`; needs nothing but torch.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import nn
from train_throughput import BATCH, CONTEXT, HEADS, HIDDEN, LAYERS, VOCAB, WIDTH, serve

HEAD = WIDTH // HEADS


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · scale, in float32."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        wide = x.float()
        mean = wide.square().mean(-1, keepdim=True)
        return (wide * torch.rsqrt(mean + 1e-5) * self.scale).to(x.dtype)


def rotate(x, cos, sin):
    first, second = x.float().chunk(2, -1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, -1).to(x.dtype)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Block(nn.Module):
    """Attention and a silu-gated MLP, each after a norm."""

    def __init__(self):
        super().__init__()
        self.mixer_norm, self.mlp_norm = RMSNorm(), RMSNorm()
        self.query_key_value, self.out = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
        self.gate, self.up = linear(WIDTH, HIDDEN), linear(WIDTH, HIDDEN)
        self.down = linear(HIDDEN, WIDTH)

    def forward(self, x, cos, sin):
        projected = self.query_key_value(self.mixer_norm(x)).chunk(3, -1)
        query, key, value = (
            y.view(BATCH, CONTEXT, HEADS, HEAD).transpose(1, 2) for y in projected
        )
        y = F.scaled_dot_product_attention(
            rotate(query, cos, sin), rotate(key, cos, sin), value, is_causal=True
        )
        y = y.transpose(1, 2).reshape(BATCH, CONTEXT, WIDTH)
        x = x + self.out(y).to(x.dtype)
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h)).to(x.dtype)


class Model(nn.Module):
    """Tokens and targets to the mean loss; the head is the embedding."""

    def __init__(self, residual_dtype):
        super().__init__()
        self.residual_dtype = residual_dtype
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = RMSNorm()
        frequencies = 10_000.0 ** (-torch.arange(0, HEAD, 2) / HEAD)
        angles = torch.arange(CONTEXT)[:, None] * frequencies
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.embedding(tokens).to(self.residual_dtype)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.float().view(-1, VOCAB), targets.view(-1))


def steps(dtype, residual_dtype):
    torch.manual_seed(0)
    model = Model(residual_dtype)
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    low = dtype == torch.bfloat16
    while True:
        row = torch.randint(VOCAB, (BATCH, CONTEXT + 1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = compiled(row[:, :-1].contiguous(), row[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.detach()


if __name__ == "__main__":
    serve(steps(*(getattr(torch, name) for name in sys.argv[1:3])))
