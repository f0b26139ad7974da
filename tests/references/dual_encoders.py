"""Tiny pairs of an image and a text encoder, in folders as save_pretrained writes them."""

import json

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", "cat", "dog", "car", "red", "the"]
VISION = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION["intermediate_size"] = 64
TEXT = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 64, "max_position_embeddings": 12, "pad_token_id": 0, "bos_token_id": 2}
TEXT |= {"eos_token_id": 3}
PAIRS = {
    "CLIP": {"vision_config": VISION, "text_config": TEXT, "projection_dim": 24},
    "Siglip": {"vision_config": VISION, "text_config": TEXT},
}
PIXELS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"height": 32, "width": 32}}
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, **PIXELS}


def write_tokenizer(folder):
    """One word, one token, between <s> and </s>; padded on the right up to 12 as SigLIP's is."""
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    raw.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, model_max_length=12, model_input_names=["input_ids"], **names
    )
    made.save_pretrained(folder)
    return made


def write(folder, kind, tokenizer=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**PAIRS[kind]))
        for value in model.parameters():  # attention that is not uniform, scores that are not tiny
            value.data += 0.1 * torch.randn(value.shape)
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model, write_tokenizer(folder) if tokenizer else None
