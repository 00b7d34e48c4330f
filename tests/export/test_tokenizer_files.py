"""tokenizer.json gives the tokens that the model was trained on."""

from types import SimpleNamespace

import pytest
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from clip_finetuning.export import tokenizer_files
from clip_finetuning.export.check import SPOILED

CAPTIONS = [
    "Caption of product 1", "", "!", "!!! wow!", "don't we'll I'm", "A  B\t\nC", "naïve café Ünïcode", "50% off: $19.99 (new)",
    "women’s “best” ‘coat’", "&amp; &lt;b&gt; &quot;x&quot; &#39;y&#39;", "靴 👟 ﬁne", "word " * 100, "<end_of_text> x", "İstanbul",
]  # fmt: skip


def model(tokenizer, length=77, **options):
    return SimpleNamespace(tokenizer=tokenizer, name="tiny", config={"text_cfg": {"context_length": length, **options}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer_files.write(model(SimpleTokenizer(context_length=20), 20), path, ["input_ids", "attention_mask"])
    return path


def test_the_file_alone_cuts_and_pads_as_open_clip_does(folder):
    from tokenizers import Tokenizer

    tokenizer, original = Tokenizer.from_file(str(folder / "tokenizer.json")), SimpleTokenizer(context_length=20)
    captions = [caption for caption in CAPTIONS if caption != "İstanbul"]
    assert [encoding.ids for encoding in tokenizer.encode_batch(captions)] == original(captions).tolist()
    differ = {
        how
        for how, spoil in SPOILED.items()
        if tokenizer.encode(spoil("a boot")).ids != original([spoil("a boot")])[0].tolist()
    }
    assert differ == {"HTML entities", "wrongly decoded UTF-8", "accents and signs"}


def test_transformers_reads_it_and_pads_behind_the_end(folder):
    from transformers import AutoTokenizer

    tokenizer, original = AutoTokenizer.from_pretrained(folder), SimpleTokenizer(context_length=20)
    tokens = tokenizer(CAPTIONS[:4], padding="max_length", truncation=True)["input_ids"]
    for mine, theirs in zip(tokens, original(CAPTIONS[:4]).tolist()):
        end = theirs.index(49407) + 1
        assert mine[:end] == theirs[:end] and len(mine) == 20


def stand_in(**fields):
    tokenizer = HFTokenizer.__new__(HFTokenizer)
    inner = SimpleNamespace(is_fast=True, pad_token_id=0)
    tokenizer.tokenizer, tokenizer.tokenizer_mode, tokenizer.strip_sep_token = inner, "", False
    for name, value in fields.items():
        setattr(tokenizer if name in ("tokenizer_mode", "strip_sep_token") else inner, name, value)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (SimpleTokenizer(reduction_mask="random"), "draws tokens at random"),
        (stand_in(tokenizer_mode="clips"), "rearranges tokens"),
        (stand_in(strip_sep_token=True), "rearranges tokens"),
        (stand_in(is_fast=False), "no fast version"),
        (stand_in(pad_token_id=None), "no padding"),
        (str, "its tokenizer is a type"),
    ],
)
def test_a_tokenizer_that_no_file_holds_is_refused(tokenizer, reason):
    with pytest.raises(ValueError, match=f"--form onnx cannot hold tiny: .*{reason}"):
        tokenizer_files.refuse(model(tokenizer), "onnx")
    tokenizer_files.refuse(model(stand_in()), "onnx")
