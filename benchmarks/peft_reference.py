"""The fine-tuning of `finetune.py` with peft and transformers: LoRA, fused AdamW.

Run by it as `python peft_reference.py FOLDER DTYPE`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from finetune import ALPHA, CONTEXT, LEARNING_RATE, RANK, recorded
from peft import LoraConfig, get_peft_model
from train_throughput import serve
from transformers import AutoModelForCausalLM


def steps(folder: str, dtype: torch.dtype):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(Path(folder, "model"), dtype=dtype)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    low = dtype == torch.bfloat16
    while True:
        for row in np.load(Path(folder, "rows.npy")):
            tokens = torch.tensor(row, dtype=torch.long)
            labels = tokens[:, 1:].clone()
            labels[:, : CONTEXT // 2] = -100
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                # As transformers has it: the model is told targets, not next tokens.
                logits = model(input_ids=tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), labels.flatten()
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield loss.detach()


if __name__ == "__main__":
    name = sys.argv[2]
    serve(recorded(steps(sys.argv[1], getattr(torch, name)), sys.argv[1], "peft"))
