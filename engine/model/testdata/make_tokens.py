# SPDX-License-Identifier: Apache-2.0
"""Writes testdata/words.json and testdata/spm.json.

words.json: texts cut into words by the patterns of the pre-tokenizers, by the package tokenizers. The
patterns are those in the tokenizer files of the models' authors.

spm.json: two small SentencePiece vocabularies, trained here with byte fallback, and the tokens that the
package sentencepiece gives for the same texts.

Run it with `make model-fixtures`.
"""
import json
import os
import sys
import tempfile

import sentencepiece
from tokenizers import Regex, pre_tokenizers

LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
CASED = (r"[^\r\n\p{L}\p{N}]?[" + UPPER + "]*[" + LOWER + r"]+SUFFIX|[^\r\n\p{L}\p{N}]?[" + UPPER +
         "]+[" + LOWER + r"]*SUFFIX|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PATTERNS = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-bpe": LLAMA,
    "qwen2": LLAMA.replace("{1,3}", ""),
    "gpt-4o": CASED.replace("SUFFIX", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", "{1,3}"),
    "tekken": CASED.replace("SUFFIX", "").replace("DIGITS", ""),
}
TEXTS = [
    "", " ", "\n", "a", "Hello world", "Hello  world", "  leading", "trailing  ", "a\n\nb", "a \n \n b",
    "tabs\t\there", "\r\n\r\nx", "x \r\n", "don't DON'T Don'T we'll WE'LL I'm I'M he'd 'tis '", "it's'S",
    "12345", "1234567 89", "a1b22c333d4444", "3.14159, 2,718", "x=1;y=22", "!!! ??", " !x", "a!b!c",
    "#include <stdio.h>\n", "foo_bar-baz/qux", "http://a.b/c?d=e&f", "/path/to/\n/x", "...\n\n\nnext",
    "camelCaseAndPascalCase", "HTTPServer", "ABC", "ABCdef GHI", "iPhone 15 PRO", "McDonald's ÉCOLE École",
    "naïve café", "e\u0301a\u0300 \u0301x", "日本語テキスト", "日本ABC語abc", "Привет МИР Мир", "ǅungla ǅ",
    "ªºʰʱ", "أهلا بالعالم", "हिन्दी भाषा", "½ ⅓ ² ٣٤٥ 一二", "emoji 🙂🙃 👍🏽x", "\u00a0nbsp\u3000wide",
    "a\u2028b\u0085c", "(a)[b]{c}", "a  b   c    d", "\t\tif x:\n\t\t\treturn\n", "end.\n\n  \n", "a\n ", "\n a",
    "'''", "x''s", "''ll", "N'T", "ſ's", "a'ſb",
]
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), *[".."] * 3)


def words(pattern, text):
    parts = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)
    assert "".join(p for p, _ in parts) == text
    return [p for p, _ in parts]


def train(kind, prefix, folder):
    texts = [os.path.join(ROOT, "bench", "quality", "texts", f"eval-{n}.txt") for n in ("essay", "python")]
    model = os.path.join(folder, kind)
    sentencepiece.SentencePieceTrainer.train(
        input=texts, model_prefix=model, vocab_size=700, model_type=kind, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
        user_defined_symbols=["\n\n", "\n", "<tag>"], minloglevel=2, num_threads=1)
    sp = sentencepiece.SentencePieceProcessor(model_file=model + ".model")
    kinds = []
    for i in range(sp.vocab_size()):
        if sp.is_unknown(i):
            kinds.append(2)
        elif sp.is_control(i):
            kinds.append(3)
        elif sp.is_byte(i):
            kinds.append(6)
        elif sp.id_to_piece(i) in ("\n\n", "\n", "<tag>"):
            kinds.append(4)
        else:
            kinds.append(1)
    return sp, dict(kind=kind, prefix=prefix, tokens=[sp.id_to_piece(i) for i in range(sp.vocab_size())],
                    scores=[sp.get_score(i) for i in range(sp.vocab_size())], kinds=kinds)


def dump(out, name, rows):
    with open(os.path.join(out, name), "w", encoding="utf8") as f:
        f.write("[\n" + ",\n".join(json.dumps(r, ensure_ascii=True) for r in rows) + "\n]\n")


def main(out):
    dump(out, "words.json", [dict(pre=p, text=t, words=words(r, t))
                             for p, r in PATTERNS.items() for t in TEXTS])
    vocabularies = []
    with tempfile.TemporaryDirectory() as folder:
        for prefix in (True, False):
            sp, v = train("bpe", prefix, folder)
            # A text that is cut at symbols gets its prefix once in sentencepiece and after each symbol in
            # llama.cpp and here; those texts are compared without a prefix only.
            texts = [t for t in TEXTS if not prefix or ("\n" not in t and t)]
            texts += ["The <tag>quick</tag> fox\n\n\njumps"] if not prefix else []
            v["texts"] = [dict(text=t, ids=sp.encode(t)) for t in texts]
            vocabularies.append(v)
    dump(out, "spm.json", vocabularies)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)))
