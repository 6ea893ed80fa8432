"""The other programs of `decode.py`: transformers and llama.cpp, greedy.

Run by it as `python decode_peers.py NAME MODEL PROMPT`, in an environment that has them
and need not have lmx. MODEL is a Hugging Face directory, or a .gguf file; PROMPT is a
JSON list of token ids.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

MOST_ROWS, MOST_TOKENS = 8, 512
Generate = Callable[[int, int], object]  # rows and new tokens


def main() -> None:
    name, model, prompt = sys.argv[1:]
    program, _, dtype = name.partition(":")
    ids = json.loads(Path(prompt).read_text())
    serve(
        llama(model, ids) if program == "llama.cpp" else torch_model(model, dtype, ids)
    )


def serve(generate: Generate) -> None:
    """Generates as asked for on stdin, 'rows tokens' a line, and says how long it took.

    Each call is made once before it is timed, so that nothing is compiled or loaded.
    """
    print("ready", flush=True)
    known = set()
    for line in sys.stdin:
        rows, tokens = (int(word) for word in line.split())
        if (rows, tokens) not in known:
            known.add((rows, tokens))
            generate(rows, tokens)
        start = time.perf_counter()
        generate(rows, tokens)
        print(f"seconds {time.perf_counter() - start}", flush=True)


def torch_model(directory: str, dtype: str, ids: list[int]) -> Generate:
    """Returns greedy generation by transformers."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), local_files_only=True
    ).eval()
    model.generation_config.eos_token_id = None  # every row has all its tokens

    def generate(rows: int, tokens: int) -> list[list[int]]:
        prompt = torch.tensor([ids] * rows)
        with torch.inference_mode():
            done = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return done[:, len(ids) :].tolist()

    return generate


def llama(file: str, ids: list[int]) -> Generate:
    """Returns greedy generation by llama.cpp, all rows in one batch a step."""
    import llama_cpp as library
    import numpy as np

    silent = library.llama_log_callback(lambda *_: None)
    library.llama_log_set(silent, None)
    library.llama_backend_init()
    model_params = library.llama_model_default_params()
    # Repacked weights crashed on the machine of LOG.md; they are its default.
    model_params.use_extra_bufts = bool(os.environ.get("LLAMA_REPACK"))
    model = library.llama_model_load_from_file(file.encode(), model_params)
    params = library.llama_context_default_params()
    params.n_ctx = MOST_ROWS * MOST_TOKENS
    params.n_batch = params.n_ubatch = MOST_ROWS * MOST_TOKENS
    params.n_seq_max = MOST_ROWS
    params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
    context = library.llama_init_from_model(model, params)
    vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    batch = library.llama_batch_init(MOST_ROWS * MOST_TOKENS, 0, 1)

    def feed(pieces: list[list[int]], start: int) -> list[int]:
        """Returns the likeliest token after each row's piece."""
        last, count = [], 0
        for row, piece in enumerate(pieces):
            for i, token in enumerate(piece):
                batch.token[count], batch.pos[count] = token, start + i
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, row
                batch.logits[count] = i == len(piece) - 1
                count += 1
            last.append(count - 1)
        batch.n_tokens = count
        if library.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        logits = (library.llama_get_logits_ith(context, i) for i in last)
        return [int(np.ctypeslib.as_array(x, (vocabulary,)).argmax()) for x in logits]

    def generate(rows: int, tokens: int) -> list[list[int]]:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        done: list[list[int]] = [[] for _ in range(rows)]
        new = feed([ids] * rows, 0)
        for i in range(tokens):
            for row, token in zip(done, new, strict=True):
                row.append(token)
            if i < tokens - 1:
                new = feed([[token] for token in new], len(ids) + i)
        return done

    return generate


if __name__ == "__main__":
    main()
