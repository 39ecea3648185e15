#!/usr/bin/env bash
# transformers: a folder without tokenizer files gives a tokenizer without words, and a model saved twice leaves an index.
# 1. Expected: AutoTokenizer.from_pretrained of a folder that holds a T5 or CLIP config.json and no tokenizer file fails, as
#    from_pretrained of a model does without weights. Seen in 5.24.0: it returns a tokenizer that knows special tokens only,
#    and every word of every text is <unk>, without an error. Texts of the same form become the same numbers.
# 2. Expected: after save_pretrained into a folder that holds the same model in several files, the folder holds the new model
#    and nothing of the old. Seen: the old files go, their model.safetensors.index.json stays and names files that are gone;
#    from_pretrained reads model.safetensors and passes the index over. What goes by the index takes the folder for damaged,
#    and where old files were copied back, from_pretrained still reads the single file, without a word.
# Exits with 1 when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 torch==2.13.0 numpy==2.3.5
cat >"$folder/look.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, CLIPConfig, LlamaConfig, LlamaModel, T5Config

print("transformers", transformers.__version__)
folder = Path(sys.argv[1])
for config in (T5Config(), CLIPConfig()):
    place = folder / config.model_type
    config.save_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    one, other = (tokenizer(text).input_ids for text in ("a photo of a cow", "a drive in a van"))
    print(type(tokenizer).__name__, "of a folder with", [path.name for path in place.iterdir()], len(tokenizer), "words:", one)
    assert one == other and one.count(tokenizer.unk_token_id) >= 5

place = folder / "twice"
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
old, new = LlamaModel(LlamaConfig(**sizes)), LlamaModel(LlamaConfig(**sizes))
old.save_pretrained(place, max_shard_size="8KB")
shards = {path.name: path.read_bytes() for path in place.glob("model-*.safetensors")}
new.save_pretrained(place)
left = sorted(path.name for path in place.iterdir())
print("saved twice:", left)
assert left == ["config.json", "model.safetensors", "model.safetensors.index.json"]
named = set(json.loads((place / "model.safetensors.index.json").read_text())["weight_map"].values())
assert named == set(shards)
for name, content in shards.items():
    (place / name).write_bytes(content)
read = LlamaModel.from_pretrained(place).embed_tokens.weight
print("with the old files copied back it reads the", "new" if torch.equal(read, new.embed_tokens.weight) else "old", "model")
assert torch.equal(read, new.embed_tokens.weight)
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
echo "as described"
