"""A small tokenizer.json of Gemma's form, with places and codes of masks."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, trainers

from triptych.text.locations import CODE_NAMES, LOCATION_NAMES

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
TEXT = "user model a red circle left of two blue squares answer caption en detect ; ocr\n"


def write_tokenizer(folder: Path, others: tuple[str, ...] = ()) -> Path:
    """Write it, with further tokens that are not marked as special; returns the folder."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIAL, *letters], show_progress=False
    )
    backend.train_from_iterator([TEXT] * 3, trainer)
    stored = json.loads(backend.to_str())
    stored["added_tokens"] = stored["added_tokens"][: len(SPECIAL)]  # bytes are no added tokens
    backend = tokenizers.Tokenizer.from_str(json.dumps(stored))
    names = ("\n", *others, *LOCATION_NAMES, *CODE_NAMES)
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(f"{folder / 'tokenizer.json'}")
    return folder
